#pragma once

#include <pybind11/pybind11.h>

namespace acn {

// Adds the class Engine to the extension.
void bind_engine(pybind11::module_& m);

}  // namespace acn
