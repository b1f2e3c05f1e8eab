// dlpack: the part of the DLPack 1.x ABI (dmlc/dlpack, Apache-2.0 specification) that a consumer on the CPU or CUDA
// needs: the layout of the two capsules "dltensor" and "dltensor_versioned", and of the table of functions in
// "dlpack_exchange_api", which DLPack 1.3 puts on an array's type as `__dlpack_c_exchange_api__`.
#pragma once

#include <cstdint>

namespace lowrank::dlpack {

enum DeviceType : int32_t { kCpu = 1, kCuda = 2, kCudaHost = 3, kCudaManaged = 13 };
enum TypeCode : uint8_t { kInt = 0, kUInt = 1, kFloat = 2, kBfloat = 4 };
constexpr uint64_t kReadOnly = 1;  // bit of ManagedVersioned::flags

struct Tensor {
  void* data;
  struct {
    DeviceType type;
    int32_t id;
  } device;
  int32_t ndim;
  struct {
    uint8_t code;
    uint8_t bits;
    uint16_t lanes;
  } dtype;
  int64_t* shape;
  int64_t* strides;  // in elements; may be null for a compact row-major tensor
  uint64_t byte_offset;
};

struct Managed {
  Tensor tensor;
  void* manager_ctx;
  void (*deleter)(Managed*);
};

struct Version {
  uint32_t major;
  uint32_t minor;
};

struct ManagedVersioned {
  Version version;
  void* manager_ctx;
  void (*deleter)(ManagedVersioned*);
  uint64_t flags;
  Tensor tensor;
};

// Functions return 0, or -1 with a Python exception.
struct ExchangeApi {
  Version version;
  ExchangeApi* previous;  // for consumers of an older major version
  void* allocate;
  void* to_managed;
  void* from_managed;
  int (*view)(void* object, Tensor* out);  // owned by `object`; null where a producer has none
  int (*work_stream)(DeviceType device, int32_t id, void** stream);
};

}  // namespace lowrank::dlpack
