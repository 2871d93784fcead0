#pragma once
#include <string>
#include <vector>

// The numbers in rows of `columns`, right-aligned.
std::string table(const std::vector<int>& numbers, int columns);
