#include "table.h"

#include <iomanip>
#include <sstream>

std::string table(const std::vector<int>& numbers, int columns) {
    std::ostringstream text;
    for (std::size_t i = 0; i < numbers.size(); ++i) {
        text << std::setw(4) << numbers[i];
        if ((i + 1) % columns == 0 || i + 1 == numbers.size()) text << '\n';
    }
    return text.str();
}
