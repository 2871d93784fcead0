#include <iostream>

#include "lib/greeting.h"

int main() {
    std::cout << greeting("worker") << std::endl;
    return 0;
}
