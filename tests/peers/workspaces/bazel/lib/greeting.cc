#include "lib/greeting.h"

std::string greeting(const std::string& whom) { return "Hello, " + whom + "!"; }
