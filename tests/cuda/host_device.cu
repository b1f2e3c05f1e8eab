// Every function that headers state for host and device, in a kernel: it has to compile for a device, too. Nothing here
// runs; tools/check_device.py says which function is missing.
#include "lowrank_core/angle.h"
#include "lowrank_core/blockwise.h"
#include "lowrank_core/chain_lr.h"
#include "lowrank_core/dct_select.h"
#include "lowrank_core/gemm.h"
#include "lowrank_core/half.h"
#include "lowrank_core/int4_project.h"
#include "lowrank_core/int4_project_address.h"
#include "lowrank_core/integers.h"
#include "lowrank_core/kalman_diag.h"
#include "lowrank_core/normal.h"
#include "lowrank_core/philox.h"
#include "lowrank_core/rotation.h"
#include "lowrank_core/rounding.h"
#include "lowrank_core/rsvd.h"
#include "lowrank_core/subspace_step.h"
#include "lowrank_core/subspace_step_following.h"
#include "lowrank_core/subspace_step_lines.h"
#include "lowrank_core/subspace_step_plain.h"
#include "lowrank_core/subspace_step_selected.h"
#include "lowrank_core/subspace_step_sketched.h"
#include "lowrank_core/view.h"

namespace lowrank {

// ---- the core ----------------------------------------------------------------------------------------------------

__global__ void storage_types(float* x, double* y, bfloat16* brain, float16* half, uint32_t* bits) {
  bits[0] = float_bits(x[0]) + magnitude_bits(x[1]);
  x[2] = bits_float(bits[1]);
  x[3] = to_float(brain[0]) + to_float(half[0]) + to_float(x[3]);
  y[0] = to_float(y[1]);
  x[4] = round_to_odd(y[2]);
  brain[1] = to_bfloat16(x[5]);
  brain[2] = to_bfloat16(y[3]);
  brain[3] = to_bfloat16(x[6], bits[2]);
  half[1] = to_float16(x[7]);
  half[2] = to_float16(y[4]);
  x[8] = Store<float>::from(y[5]);
  y[6] = Store<double>::from(y[7]);
  brain[4] = Store<bfloat16>::from(x[9]);
  brain[5] = Store<bfloat16>::from(y[8]);
  half[3] = Store<float16>::from(x[10]);
  half[4] = Store<float16>::from(y[9]);
}

__global__ void views(Matrix m, float* x) {
  const Matrix part = m.transposed().block(1, 2, 3, 4), row = row_major(x, 1, item_size(m.dtype));
  if (!part.empty() && is_float(part.dtype) && round_up(part.rows, 8) > ceil_div(part.cols, 8))
    part.as<float>()[0] = row.as<float>()[0];
}

__global__ void random_words(uint32_t* words, float* x, uint64_t seed) {
  words[0] = philox::rounds10({{words[0], words[1], words[2], words[3]}}, words[4], words[5]).v[0];
  words[6] = philox::block(seed, 1, 2, 3).v[1] ^ philox::bits(seed, {4, 5, 6});
  x[0] = philox::uniform(words[7]);
}

__global__ void integers(float* x, int32_t* n, bfloat16* brain) {
  n[0] = rounding::nearest(x[0]) + rounding::stochastic(x[1], x[2]);
  const rounding::Divider divide = rounding::divider(x[3]);
  x[4] = rounding::clamp(divide.operator()(x[5]), -1.0f, 1.0f);
  n[1] = rounding::flip(n[2]) + rounding::ordered(x[6]) + int32_t(rounding::finite(x[7]));
  x[8] = rounding::from_ordered(n[3]);
  brain[0] = rounding::bfloat16_above(x[9]);
  brain[1] = rounding::bfloat16_below(x[10]);
}

__global__ void angles(double* y, int64_t t, int64_t n) {
  y[0] = circle_point(t, n).cos;
  y[1] = dct2_entry(n, t, 3);
}

__global__ void rotations(double* y, int64_t* n) {
  if (are_orthogonal(y[0], y[1], y[2], y[3])) return;
  y[4] = jacobi_rotation(y[0], y[1], y[2]).s;
  n[0] = opponents(n[1], n[2], n[3]).i;
}

__global__ void normal_numbers(uint32_t* words, double* y) {
  using namespace normal;
  y[0] = minus_log(double_bits(y[1])) + cosine(words[0]) + exactly(words[1]) + bits_double(words[2]);
  y[2] = from_words(words[3], words[4]);
}

__global__ void products(float* x) {
  const Scaling<float> scaling{x[0], x[1]};
  x[2] = scaling.operator()(x[3], x[4]);
}

// ---- blockwise ---------------------------------------------------------------------------------------------------

template <class Map>
__device__ float through(typename Map::Code* codes, const float* x, uint32_t word) {
  const float scale = blockwise::scale_of<Map>(x[0]), place = Map::place(Map::spread(x[1]));
  const rounding::Divider divide = rounding::divider(scale);
  codes[0] = blockwise::code_of<Map>(x[2], divide);
  codes[1] = blockwise::code_of<Map>(x[3], divide, word);
  codes[2] = Map::nearest(place);
  codes[3] = Map::stochastic(place, x[4]);
  return Map::value(codes[4], scale);
}

__global__ void codes_of_blocks(int8_t* codes, uint8_t* roots, float* x, uint32_t word) {
  using blockwise::RootMap, blockwise::SignedMap;
  x[5] = through<SignedMap>(codes, x, word) + through<RootMap>(roots, x, word);
  x[6] = SignedMap::spread(x[7]) + SignedMap::place(x[8]) + SignedMap::value(codes[5], x[9]);
  x[10] = RootMap::spread(x[11]) + RootMap::place(x[12]) + RootMap::value(roots[5], x[13]);
  codes[6] = int8_t(SignedMap::nearest(x[14]) + SignedMap::stochastic(x[15], x[16]));
  roots[6] = uint8_t(RootMap::nearest(x[17]) + RootMap::stochastic(x[18], x[19]) + RootMap::not_zero(0, x[20]));
  x[21] = float(blockwise::blocks(int64_t(x[22])));
}

// ---- families ----------------------------------------------------------------------------------------------------

__global__ void chain_lr_rows(float* x, double* y) {
  using namespace chain_lr;
  RunningRow<float> row;
  row.grow(x[0], x[1]);
  row.add(x[2], x[3]);
  x[4] = gradient_entry(x[5], x[6], row.rho(), row.scale()) - row.shift();
  y[0] = taylor_exp(y[1], 4) + taylor_row_error(y[2], 4) + taylor_error(y[3], 4);
  y[4] = product_cost(y[5], y[6], y[7]);
}

__global__ void dct_select_rows(float* x, double* y, int64_t* n) {
  using namespace dct_select;
  const Turn turn = turn_of(n[0], n[1]);
  const Couple<float> couple = turned(Couple<float>{x[0], x[1]}, x[2], float(turn.cos));
  const Quad<float> quad = packed(unpacked(Quad<float>{couple, couple}, x[3], x[4]), x[3], x[4]);
  x[5] = quad.k.first;
  y[0] = first_amplitude(n[2]) + hadamard_amplitude(n[2]);
  n[3] = makhoul_place(n[0], n[4]) + hadamard_sign(uint64_t(n[5]), 3) + int64_t(ranks_before(y[1], 1, y[2], 2));
}

__global__ void int4_project_codes(float* x, uint8_t* bytes, int4_project::Scheme scheme, bool stochastic) {
  using namespace int4_project;
  const Extremes range = Extremes{x[0], x[1]}.with_zero();
  if (!range.representable() || range.largest() == 0.0f) return;
  const Stored stored = fit(scheme, range, stochastic),
               others[] = {fit_affine(range), fit_zero_point(range), fit_covering_zero_point(range)};
  x[2] = covering_scale(range, to_float(others[0].scale) + to_float(others[1].scale) + to_float(others[2].scale));
  const float scale = to_float(stored.scale), offset = to_float(stored.offset);
  const Placement at = placement(scheme, scale, offset);
  const float place = at.operator()(x[3]);
  bytes[0] = byte_of(nearest_even_code(place, at.shift), nearest_nf4_code(place));
  bytes[1] = byte_of(stochastic_even_code(place, at.shift, x[4]), stochastic_nf4_code(place, x[4]));
  const auto all = std::make_index_sequence<15>();
  bytes[2] = uint8_t(midpoints_below(place, all) + levels_passed(place, x[4], all));
  bytes[3] = uint8_t(is_past_midpoint<3>(place) + is_past_level<4>(place, x[4]));
  x[5] = decode(grid(scheme, scale, offset), number_of(code_of(bytes[4], 1), false)) + nf4_level(bytes[5]);
}

__global__ void int4_project_addresses(int4_project::Lines lines, int4_project::Format format,
                                       int4_project::PackedMatrix packed, float* x, int64_t* n) {
  using namespace int4_project;
  const Place place = lines.at(n[0]);
  n[1] = lines.array_at(place, n[2]) + lines.element_at(place, n[2]) + lines.byte_at(place, n[2]);
  n[3] = lines.group_at(place, n[4]) + format.groups(n[5]) + format.bytes(n[5]);
  n[6] = int64_t(philox::bits(1, draw_position(uint64_t(n[7]))));
  x[0] = packed.element(n[8], n[9], packed.grid_of(n[8] / packed.group, n[9])) + float(*packed.byte(n[8], n[9]));
}

__global__ void kalman_diag_step(double* y, float* x) {
  using namespace kalman_diag;
  y[0] = shrunk(y[1], y[2]) + shrunk(y[3], y[4], y[5]) + checked_variance(y[6]);
  y[7] = stepped(y[8], capped_rate(y[9], y[10], y[11]), direction(y[12], y[13], y[14])) + gain_entry(y[15], y[16]);
  y[17] = stored(y[18], y[19]);
  x[0] = stored(y[20], x[1]);
}

__global__ void rsvd_entries(float* x, int64_t* n, uint64_t seed) {
  using namespace rsvd;
  const SketchEntry entry = sketch_entry(seed, 1, n[0], n[1], sketch_nonzeros(n[0]) - 1);
  x[entry.col] = entry.value * sign_of(dominant(x[0], x[1]));
}

template <class T>
__device__ void rules(subspace_step::Factors<T> f, T* x) {
  using namespace subspace_step;
  x[0] = adam(f, x[1], x[2], x[3]) + adam(f, x[1], x[2], x[3], x[27]) + lion(f, x[4], x[5]) + momentum(f, x[6], x[7]) +
         sign(x[8]) + root(x[9]) + average(f, x[28], x[29]) + adabelief(f, x[1], x[2], x[3], x[27]) +
         corrected(f, x[1], x[2], x[27]) + T(has_second(Rule::kLion)) + T(has_first(Rule::kLion));
  x[10] = write_back(x[11], x[12], x[13], folded_direction(x[14], x[15], x[16], x[17]));
  x[18] = less_scaled(x[10], x[19], x[20]) + less_sign(x[10], x[21], x[22], x[23], x[24]) + sign_above(x[25], x[26]);
}

template <class T>
__device__ void loop(subspace_step::LoopFactors<T> f, T* x) {
  using namespace subspace_step;
  x[0] = loop_first<true>(f, x[1], x[2]) + loop_first<false>(f, x[1], x[2]);
  x[3] = loop_second<true>(f, x[4], x[5]) + loop_second<false>(f, x[4], x[5]);
  x[6] = loop_weight(f, x[7], x[0], root(x[3])) + product_and_sum<true>(x[8], x[9], x[10]);
  x[11] = loop_direction(f, x[0], x[3]) + less_direction<true>(x[12], x[13], x[14], x[15]);
}

__global__ void subspace_step_loop(subspace_step::LoopFactors<float> narrow, subspace_step::LoopFactors<double> wide,
                                   float* x, double* y) {
  using namespace subspace_step;
  loop(narrow, x);
  loop(wide, y);
  x[11] = fused_multiply_add(x[12], x[13], x[14]);
  y[11] = fused_multiply_add(y[12], y[13], y[14]);
}

__global__ void subspace_step_elements(subspace_step::Factors<float> narrow, subspace_step::Factors<double> wide,
                                       float* x, double* y, uint32_t* words) {
  using namespace subspace_step;
  rules(narrow, x);
  rules(wide, y);
  x[30] = root(x[31]);
  y[30] = root(y[31]) + channel_scale(y[32], y[33]) + residual_norm(y[34], y[35], y[36], y[37]);
  y[38] = limiter(y[39], y[40], y[41], limiter_floor(y[42])) + sign_threshold(y[43], y[44], y[45]);
  y[46] = keep_factor(y[47], y[48]);
  y[49] = line_factor(y[50], y[51]) + line_entry(y[52], y[53], y[54], y[55], y[56]) + double(line_scale(x[32]));
  y[64] = over_root(moved_mean(y[50], y[51], y[52], y[53], y[54]), y[55]);
  y[64] += variance(y[50], y[51], y[52], y[53]) + second_of(y[50], y[51], y[52], y[53]);
  y[57] = clip_divisor(joined_square(y[58], y[59], y[60], y[61]), y[62], y[63]);
  words[0] = philox::bits(1, weight_draw(2, 3, 4, 5, true, 6)) ^ philox::bits(1, moment_draw(2, 3, true, 6));
}

}  // namespace lowrank
