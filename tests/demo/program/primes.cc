#include "primes.h"

std::vector<int> primes_below(int limit) {
    std::vector<bool> composite(limit);
    std::vector<int> found;
    for (int n = 2; n < limit; ++n) {
        if (composite[n]) continue;
        found.push_back(n);
        for (int multiple = 2 * n; multiple < limit; multiple += n) composite[multiple] = true;
    }
    return found;
}
