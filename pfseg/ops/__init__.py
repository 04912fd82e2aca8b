"""Operators and layers of the networks; their C++ for a CPU is in the header files beside them."""
