#pragma once
#include <vector>

// All primes smaller than `limit`, the smallest first.
std::vector<int> primes_below(int limit);
