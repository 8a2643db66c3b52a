// Arguments that the doors of the dropout ops share.
#pragma once

#include "bindings.h"
#include "dropout.h"

namespace fastseq {

inline Dropout make_dropout(double p, int64_t seed, int64_t step, uint32_t site) {
    return {Rng(seed, step), site, dropout_threshold(p), 1.0 / (1.0 - p)};
}

// Null where the array is None; else its data, after the check of its shape.
template <typename T>
T* optional_data(OptionalArray<T>& array, const char* name, std::initializer_list<int64_t> shape) {
    if (!array) return nullptr;
    check_shape(*array, name, shape);
    return array->mutable_data();
}

template <typename T>
const T* optional_data(const OptionalArray<T>& array, const char* name, std::initializer_list<int64_t> shape) {
    if (!array) return nullptr;
    check_shape(*array, name, shape);
    return array->data();
}

}  // namespace fastseq
