// How ATen's operations run inside of the engine.
#pragma once

#include <c10/core/DispatchKeySet.h>
#include <c10/core/InferenceMode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

namespace acn {

// On the thread that holds one, as long as it does: without gradients, and in the precision of
// their operands, whatever autocast the caller has on.
struct PlainOperations {
  const c10::InferenceMode no_autograd;
  const c10::impl::ExcludeDispatchKeyGuard no_autocast{c10::autocast_dispatch_keyset};
};

}  // namespace acn
