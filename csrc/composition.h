// Whether Python's modules are made of what they were: acn_kernels/composition.py asks, at every
// call of a network that may take less time than to ask in Python.
#pragma once

#include <ATen/core/Tensor.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <utility>
#include <vector>

namespace acn {

// Where tensors had their numbers when they were listed, and how many.
class Places {
 public:
  explicit Places(std::vector<at::Tensor> tensors) : tensors_(std::move(tensors)) {
    for (const at::Tensor& each : tensors_) {
      places_.push_back({each.const_data_ptr(), each.numel()});
    }
  }

  bool hold() const {
    for (size_t i = 0; i < tensors_.size(); ++i) {
      if (tensors_[i].numel() != places_[i].second) return false;
      if (tensors_[i].const_data_ptr() != places_[i].first) return false;
    }
    return true;
  }

 private:
  std::vector<at::Tensor> tensors_;
  std::vector<std::pair<const void*, int64_t>> places_;
};

// Whether objects[i] is of the very type types[i] for all i.
inline bool types_are(const pybind11::list& objects, const pybind11::list& types) {
  const auto count = static_cast<Py_ssize_t>(types.size());
  for (Py_ssize_t i = 0; i < count; ++i) {
    const auto* type = reinterpret_cast<PyObject*>(Py_TYPE(PyList_GET_ITEM(objects.ptr(), i)));
    if (type != PyList_GET_ITEM(types.ptr(), i)) return false;
  }
  return true;
}

// Whether dicts[i] has sizes[i] entries for all i.
inline bool sizes_are(const pybind11::list& dicts, const pybind11::list& sizes) {
  const auto count = static_cast<Py_ssize_t>(sizes.size());
  for (Py_ssize_t i = 0; i < count; ++i) {
    const Py_ssize_t size = PyLong_AsSsize_t(PyList_GET_ITEM(sizes.ptr(), i));
    if (PyDict_GET_SIZE(PyList_GET_ITEM(dicts.ptr(), i)) != size) return false;
  }
  return true;
}

// Whether the values of all `dicts`, one after the other, are the objects in `held`.
inline bool values_are(const pybind11::list& dicts, const pybind11::list& held) {
  const auto count = static_cast<Py_ssize_t>(held.size());
  Py_ssize_t seen = 0;
  for (const pybind11::handle dict : dicts) {
    PyObject *key = nullptr, *value = nullptr;
    for (Py_ssize_t at = 0; PyDict_Next(dict.ptr(), &at, &key, &value); ++seen) {
      if (seen == count || PyList_GET_ITEM(held.ptr(), seen) != value) return false;
    }
  }
  return seen == count;
}

// Whether dicts[i][names[i]] is held[i] for all i.
inline bool entries_are(const pybind11::list& dicts, const pybind11::list& names,
                        const pybind11::list& held) {
  const auto count = static_cast<Py_ssize_t>(held.size());
  for (Py_ssize_t i = 0; i < count; ++i) {
    PyObject* entry = PyDict_GetItemWithError(PyList_GET_ITEM(dicts.ptr(), i),
                                              PyList_GET_ITEM(names.ptr(), i));
    if (entry == nullptr && PyErr_Occurred()) throw pybind11::error_already_set();
    if (entry != PyList_GET_ITEM(held.ptr(), i)) return false;
  }
  return true;
}

}  // namespace acn
