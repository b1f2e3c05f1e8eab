// Plans, and the transform of whole arrays.
#include <algorithm>
#include <cmath>
#include <mutex>

#include "dct_select/engine.h"
#include "lowrank_core/gemm.h"
#include "lowrank_core/parallel.h"

namespace lowrank::dct_select {
namespace {

constexpr size_t kKept = 8;              // plans of one kind: a model has a handful of widths
constexpr int64_t kKeptSize = 64 << 20;  // their bytes; larger ones are built for each call

// Lengths up to which the product was faster on two cores with AVX-512: odd rows are complex ones of full length, and
// convolutions cost several transforms.
int64_t longest_product(int64_t n) {
  const bool odd = n % 2 != 0, chirped = fft::largest_prime(n) > fft::kLargestRadix;
  if (odd) return chirped ? 320 : 80;
  return chirped ? 112 : 24;
}

template <class T>
int64_t bytes(const Buffer<T>& buffer) {
  return buffer.size() * int64_t(sizeof(T));
}
template <class T>
int64_t bytes(const Prepared<T>& p) {
  return bytes(p.plan.numbers) + bytes(p.plan.places) + bytes(p.turns) + bytes(p.time) + bytes(p.exchanged) +
         bytes(p.frequency);
}

// The last few values by their number, as far as they are small enough, built outside any parallel region; the caller
// holds what it uses. Nobody waits for the lock: where another thread has it, or had it when this process was forked,
// the value is built anew.
template <class Value>
class Cache {
 public:
  template <class Build>
  std::shared_ptr<const Value> get(int64_t n, const Build& build) {
    if (auto value = find(n)) return value;
    const auto value = std::make_shared<const Value>(build());
    keep({n, bytes(*value), value});
    return value;
  }

 private:
  struct Entry {
    int64_t n, size;
    std::shared_ptr<const Value> value;
  };

  std::shared_ptr<const Value> find(int64_t n) {
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (!lock) return nullptr;
    const auto found = std::find_if(kept_.begin(), kept_.end(), [&](const Entry& entry) { return entry.n == n; });
    if (found == kept_.end()) return nullptr;
    std::rotate(kept_.begin(), found, found + 1);
    return kept_.front().value;
  }

  void keep(Entry entry) {
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (!lock || entry.size > kKeptSize) return;
    int64_t size = 0;
    kept_.insert(kept_.begin(), std::move(entry));
    for (size_t i = 0; i < kept_.size(); ++i) {
      size += kept_[i].size;
      if (i == kKept || size > kKeptSize) return kept_.resize(i);
    }
  }

  std::mutex mutex_;
  std::vector<Entry> kept_;
};

template <class T>
Prepared<T> prepare(int64_t n) {
  Prepared<T> made;
  const bool odd = n % 2 != 0;
  const int64_t half = n / 2;
  made.n = n;
  made.plan = fft::make_plan<T>(odd ? n : half);
  made.turns = Buffer<T>(4 * (half + 1));
  for (int64_t k = 0; k <= half; ++k) {
    const Turn turn = turn_of(n, k);
    T* const to = made.turns.data() + 4 * k;
    to[0] = T(turn.cos);
    to[1] = T(turn.sin);
    to[2] = T(turn.root_cos);
    to[3] = T(turn.root_sin);
  }
  made.time = Buffer<int32_t>(n);
  made.exchanged = Buffer<int32_t>(n);
  made.frequency = Buffer<int32_t>(n);
  for (int64_t i = 0; i < n; ++i) {
    made.time[i] = int32_t(makhoul_place(n, i) * (odd ? 2 : 1));  // an odd row has no imaginary parts
    made.exchanged[i] = made.time[i] ^ 1;
  }
  const int32_t* const place = made.plan.place;
  made.frequency[0] = 2 * place[0];
  if (!odd) made.frequency[half] = 2 * place[0] + 1;
  for (int64_t k = 1; k < n - k; ++k) {
    made.frequency[k] = 2 * place[k];
    made.frequency[n - k] = 2 * place[k] + 1;
  }
  return made;
}

struct Pieces {
  std::vector<Matrix> out, x;
};

// [..., n] arrays as matrices of as many rows as their strides allow.
Pieces pieces_of(const View& out, const View& x) {
  const int last = x.rank - 1;
  int first = last - 1;  // of the dimensions that become rows
  int64_t rows = first < 0 ? 1 : x.shape[size_t(first)];
  const auto joins = [&](const View& v, int i) {
    return v.stride[size_t(i)] == v.shape[size_t(i + 1)] * v.stride[size_t(i + 1)];
  };
  while (first > 0 && joins(x, first - 1) && joins(out, first - 1)) rows *= x.shape[size_t(--first)];
  int64_t count = 1;
  for (int i = 0; i < first; ++i) count *= x.shape[size_t(i)];
  Pieces pieces;
  for (int64_t number = 0; number < count; ++number) {
    for (const View* v : {&out, &x}) {
      int64_t offset = 0, rest = number;
      for (int i = first - 1; i >= 0; --i) {
        offset += rest % v->shape[size_t(i)] * v->stride[size_t(i)];
        rest /= v->shape[size_t(i)];
      }
      char* const start = static_cast<char*>(v->data) + offset * item_size(v->dtype);
      const int64_t row_stride = last == 0 ? 0 : v->stride[size_t(last - 1)];
      (v == &x ? pieces.x : pieces.out)
          .push_back({start, v->dtype, rows, v->shape[size_t(last)], row_stride, v->stride[size_t(last)]});
    }
  }
  return pieces;
}

template <class T>
void transform_pieces(const Pieces& pieces, Basis basis, int64_t n) {
  const Engine<T> engine(basis, n);
  const int64_t rows = pieces.x.front().rows, each = rows_of_a_task(rows), tasks = ceil_div(rows, each);
  parallel_for(int64_t(pieces.x.size()) * tasks, [&](int64_t i) {
    RowJob<T> job{.transform = &engine.transform(), .in = pieces.x[size_t(i / tasks)]};
    job.out = pieces.out[size_t(i / tasks)];
    job.scale = engine.amplitude();
    job.begin = i % tasks * each;
    job.end = std::min(rows, job.begin + each);
    run_rows(job);
  });
}

}  // namespace

template <class T>
std::shared_ptr<const Prepared<T>> prepared(int64_t n) {
  static Cache<Prepared<T>> cache;
  return cache.get(n, [n] { return prepare<T>(n); });
}

template <class T>
std::shared_ptr<const MatrixBuffer<T>> dct2_atoms(int64_t n) {
  static Cache<MatrixBuffer<T>> cache;
  return cache.get(n, [n] {
    MatrixBuffer<T> atoms(n, n);
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t k = 0; k < n; ++k) atoms.at(i, k) = T(dct2_entry(n, k, i));
    }
    return atoms;
  });
}

bool prefers_product(Basis basis, int64_t n, Method method) {
  if (basis == Basis::kIdentity || basis == Basis::kHadamard) return false;
  if (method != Method::kAuto) return method == Method::kGemm;
  return n <= longest_product(n);
}

template <class T>
Engine<T>::Engine(Basis basis, int64_t n) : transform_{basis, n, n, nullptr, nullptr, nullptr, nullptr, nullptr} {
  LRC_CHECK(basis != Basis::kHadamard || (n & (n - 1)) == 0, "dct_select: `basis` hadamard needs a power of two");
  if (basis == Basis::kIdentity || basis == Basis::kHadamard) return;
  prepared_ = prepared<T>(n);
  transform_.plan = &prepared_->plan;
  transform_.vectors = 2 * prepared_->plan.length;
  transform_.points = prepared_->plan.place;
  transform_.turns = prepared_->turns.data();
  const int32_t* const frequency = prepared_->frequency.data();
  transform_.place_before = basis == Basis::kDct2 ? prepared_->time.data() : frequency;
  transform_.place_after = basis == Basis::kDct2 ? frequency : prepared_->exchanged.data();
}

template <class T>
double Engine<T>::amplitude() const {
  return transform_.basis == Basis::kHadamard ? hadamard_amplitude(transform_.n) : 1.0;
}

template <class T>
void Engine<T>::run(const RowJob<T>& job) const {
  parallel_chunks(job.in.rows, rows_of_a_task(job.in.rows), [&](int64_t begin, int64_t end) {
    RowJob<T> part = job;
    part.transform = &transform_;
    part.begin = begin;
    part.end = end;
    run_rows(part);
  });
}

void transform_cpu(const View& out, const View& x, Basis basis, Method method) {
  if (x.size() == 0) return;
  const int64_t n = x.shape[size_t(x.rank - 1)];
  const Pieces pieces = pieces_of(out, x);
  with_work_type(x.dtype, [&](auto tag) {
    using T = decltype(tag);
    if (!prefers_product(basis, n, method)) return transform_pieces<T>(pieces, basis, n);
    const auto held = dct2_atoms<T>(n);
    const Matrix dct2 = row_major(const_cast<T*>(held->data()), n, n);
    const Matrix atoms = basis == Basis::kDct2 ? dct2 : dct2.transposed();
    for (size_t i = 0; i < pieces.x.size(); ++i) gemm(pieces.out[i], pieces.x[i], atoms);
  });
}

template class Engine<float>;
template class Engine<double>;
template std::shared_ptr<const MatrixBuffer<float>> dct2_atoms(int64_t);
template std::shared_ptr<const MatrixBuffer<double>> dct2_atoms(int64_t);

}  // namespace lowrank::dct_select
