// The host's side of CUDA and of torch: what a device would say of itself, copies, errors, and what a capture forbids.

#include <cuda_runtime.h>

#include <cstdlib>
#include <random>
#include <string_view>
#include <unordered_map>

#include "machine.h"

// Under their own names again: torch's functions.
#undef aoti_torch_aten_new_empty
#undef torch_call_dispatcher
extern "C" decltype(cuda_emulator_new_empty) aoti_torch_aten_new_empty;
extern "C" decltype(cuda_emulator_call_dispatcher) torch_call_dispatcher;

namespace cuda_emulator {
namespace {

int from_environment(const char* name, int otherwise) {
  const char* value = std::getenv(name);
  return value && *value ? static_cast<int>(std::strtol(value, nullptr, 0)) : otherwise;
}

// As an A100 has it.
constexpr int kMostThreadsOfProcessor = 2048, kSharedOfProcessor = 164 << 10;
constexpr int kShared = 48 << 10, kSharedOptIn = 163 << 10;

std::unordered_map<const void*, int> shared_limits;

constexpr const char* kNotInACapture = "not permitted in the capture of a CUDA graph: ";
bool forbidden_in_a_capture(const char* what) {
  if (settings.capture) {
    failure = {cudaErrorStreamCaptureUnsupported, std::string(kNotInACapture) + what};
  }
  return settings.capture;
}
cudaError_t refuse(cudaError_t error, const std::string& message) {
  failure = {error, message};
  return error;
}
cudaError_t wait_for_device(const char* what) {
  return forbidden_in_a_capture(what) ? cudaErrorStreamCaptureUnsupported : cudaSuccess;
}

bool looks_at_accesses() {
  const char* mode = std::getenv("VPGFAST_EMULATED");
  return (mode != nullptr && std::string(mode) == "races") || std::getenv("VPGFAST_EMULATOR_TRAFFIC") != nullptr;
}

}  // namespace

Settings settings{
    static_cast<unsigned>(from_environment("VPGFAST_EMULATOR_SEED", static_cast<int>(std::random_device{}() >> 1))),
    from_environment("VPGFAST_EMULATOR_POISON", 0xff), from_environment("VPGFAST_EMULATOR_PROCESSORS", 108),
    from_environment("VPGFAST_EMULATOR_CAPTURE", 0) != 0, looks_at_accesses()};

// The error that a device would refuse the launch with, if it would.
void check_launch_limits() {
  const Launch& launch = *now.launch;
  const dim3 grid = launch.grid, block = launch.block;
  const int64_t count = int64_t{block.x} * block.y * block.z;
  const auto limit = shared_limits.find(launch.function);
  const int64_t most = limit == shared_limits.end() ? kShared : limit->second;
  if (count < 1 || count > kMostThreads || block.z > 64 || grid.x < 1 || grid.y < 1 || grid.z < 1 ||
      grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) {
    failure = {cudaErrorInvalidConfiguration, "invalid configuration argument"};
  } else if (launch.shared < 0 || launch.shared > most) {
    failure = {cudaErrorInvalidValue, "invalid argument: " + std::to_string(launch.shared) + " bytes of shared memory"};
  }
}

int64_t most_shared(const void* function) {
  return shared_limits.contains(function) ? kSharedOptIn : kShared;
}

cudaError_t set_attribute(const void* function, cudaFuncAttribute attribute, int value) {
  if (attribute == cudaFuncAttributeMaxDynamicSharedMemorySize) {
    if (value < 0 || value > kSharedOptIn) {
      return refuse(cudaErrorInvalidValue, "invalid argument: more shared memory than a block can have");
    }
    shared_limits[function] = std::max(value, kShared);
  }
  return cudaSuccess;
}

int blocks_that_fit(int threads, size_t shared) {
  const auto by_shared = static_cast<size_t>(kSharedOfProcessor) / (shared + 1024);
  return static_cast<int>(std::min<size_t>({by_shared, size_t(kMostThreadsOfProcessor / std::max(1, threads)), 32}));
}

}  // namespace cuda_emulator

using namespace cuda_emulator;

// What tests may set and ask for in the middle of a run.
extern "C" __attribute__((visibility("default"))) int cuda_emulator_set(const char* name, int value) {
  const std::string_view what(name);
  if (what == "seed") {
    settings.seed = static_cast<unsigned>(value);
  } else if (what == "poison") {
    settings.poison = value;
  } else if (what == "processors") {
    settings.processors = value;
  } else if (what == "capture") {
    settings.capture = value != 0;
  } else if (what == "ends") {
    settings.ends = value;
  } else {
    return 1;
  }
  return 0;
}
extern "C" __attribute__((visibility("default"))) int cuda_emulator_get(const char* name) {
  const std::string_view what(name);
  return what == "seed"       ? static_cast<int>(settings.seed)
         : what == "poison"   ? settings.poison
         : what == "launches" ? static_cast<int>(launches)
                              : -1;
}

// CUDA's functions ---------------------------------------------------------------------------------------------------

cudaError_t cudaGetLastError() {
  const auto error = static_cast<cudaError_t>(failure.code);
  failure.code = 0;
  return error;
}
cudaError_t cudaPeekAtLastError() {
  return static_cast<cudaError_t>(failure.code);
}
const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : failure.message.c_str();
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t) {
  // A graph would keep the host's address and read it at every replay.
  if (kind != cudaMemcpyDeviceToDevice && forbidden_in_a_capture("a copy between host and device")) {
    return cudaErrorStreamCaptureUnsupported;
  }
  if (bytes > 0) {
    std::memmove(to, from, bytes);
  }
  return cudaSuccess;
}
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  const cudaError_t waited = wait_for_device("cudaMemcpy");
  return waited == cudaSuccess ? cudaMemcpyAsync(to, from, bytes, kind) : waited;
}
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  if (bytes > 0) {
    std::memset(to, value, bytes);
  }
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t) {
  return wait_for_device("cudaStreamSynchronize");
}
cudaError_t cudaDeviceSynchronize() {
  return wait_for_device("cudaDeviceSynchronize");
}
cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  *status = settings.capture ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock:
      *value = kMostThreads;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      *value = kShared;
      return cudaSuccess;
    case cudaDevAttrWarpSize:
      *value = kWarp;
      return cudaSuccess;
    case cudaDevAttrMultiProcessorCount:
      *value = settings.processors;
      return cudaSuccess;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      *value = kMostThreadsOfProcessor;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      *value = 8;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      *value = 0;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = kSharedOfProcessor;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = kSharedOptIn;
      return cudaSuccess;
  }
  return refuse(cudaErrorInvalidValue, "invalid argument: an attribute that the emulator does not know");
}

// Torch's functions --------------------------------------------------------------------------------------------------

namespace {

void poison(AtenTensorHandle tensor) {
  void* data = nullptr;
  int64_t bytes = 0;
  if (settings.ends > 0) {
    return;
  }
  if (aoti_torch_get_data_ptr(tensor, &data) == 0 && aoti_torch_get_storage_size(tensor, &bytes) == 0 && bytes > 0) {
    std::memset(data, settings.poison, static_cast<size_t>(bytes));
  }
}

// Whether an op makes the host wait for what the device has computed.
bool waits_for_device(std::string_view op, std::string_view overload, const StableIValue* arguments) {
  for (const char* known :
       {"item", "_local_scalar_dense", "is_nonzero", "equal", "allclose", "nonzero", "masked_select", "unique",
        "_unique2", "unique_consecutive", "unique_dim", "bincount", "cpu"}) {
    if (op == std::string("aten::") + known) {
      return true;
    }
  }
  // A device that is asked for is here always the CPU.
  return (op == "aten::to" && overload == "dtype_layout" && arguments[3] != 0) ||
         (op == "aten::_to_copy" && arguments[3] != 0) || (op == "aten::to" && overload == "device");
}

}  // namespace

AOTITorchError cuda_emulator_new_empty(AtenTensorHandle self, const int64_t* size, int64_t dimensions, int32_t* dtype,
                                       int32_t* layout, int32_t* device, int32_t device_index, int32_t* pin_memory,
                                       AtenTensorHandle* result) {
  const AOTITorchError error =
      aoti_torch_aten_new_empty(self, size, dimensions, dtype, layout, device, device_index, pin_memory, result);
  if (error == 0) {
    poison(*result);
  }
  return error;
}

AOTITorchError cuda_emulator_call_dispatcher(const char* op, const char* overload, StableIValue* stack,
                                             uint64_t version) {
  STD_TORCH_CHECK(!(settings.capture && waits_for_device(op, overload, stack)), kNotInACapture, op,
                  " waits for the device");
  const AOTITorchError error = torch_call_dispatcher(op, overload, stack, version);
  const std::string_view name(op);
  if (error == 0 && (name == "aten::empty" || name == "aten::empty_like" || name == "aten::new_empty" ||
                     name == "aten::empty_strided" || name == "aten::new_empty_strided")) {
    poison(reinterpret_cast<AtenTensorHandle>(stack[0]));
  }
  return error;
}
