// Loads torch and ends: what no program that uses it starts faster than.
#include <ATen/Parallel.h>

int main() { return at::get_num_threads() > 0 ? 0 : 1; }
