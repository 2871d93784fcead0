#include <iostream>

#include "primes.h"
#include "table.h"

int main() {
    std::cout << table(primes_below(100), 5);
    return 0;
}
