/* What the kernels below call beyond OpenCL C 1.1. Compiled with -D STIC_DOT=.. -D STIC_WIDTHS=.. */

/* Half precision is only a format of memory here: these are core functions, the type needs no cl_khr_fp16
   (OpenCL C 1.1, 6.11.7), and n halves need the alignment of one. */
#define stic_load_half(p) vload_half(0, p)
#define stic_load_half2(p) vload_half2(0, p)
#define stic_load_half4(p) vload_half4(0, p)
#define stic_load_half8(p) vload_half8(0, p)
#define stic_load_half16(p) vload_half16(0, p)
#define stic_store_half(v, p) vstore_half_rte(v, 0, p)
#define stic_store_half2(v, p) vstore_half2_rte(v, 0, p)
#define stic_store_half4(v, p) vstore_half4_rte(v, 0, p)
#define stic_store_half8(v, p) vstore_half8_rte(v, 0, p)
#define stic_store_half16(v, p) vstore_half16_rte(v, 0, p)

/* The same for kernels that know halves as their bits. */
float stic_from_half(ushort bits) {
  uchar2 bytes = as_uchar2(bits);
  return vload_half(0, (const half *)&bytes);
}

ushort stic_to_half(float value) {
  uchar2 bytes;
  vstore_half_rte(value, 0, (half *)&bytes);
  return as_ushort(bytes);
}

/* stic_dot4(weight, x, acc): acc + the sum of four products of int8, exact in int32. */
#if STIC_DOT == 1
/* The packed form is the one that every version of the extension has (OpenCL Extension Specification,
   cl_khr_integer_dot_product, version 2.0.0). */
#pragma OPENCL EXTENSION cl_khr_integer_dot_product : enable
#define stic_dot4(w, x, acc) ((acc) + dot_4x8packed_ss_int(as_uint(w), as_uint(x)))
#elif STIC_DOT == 2
/* acc + the sum of products, operands sign-extended (cl_arm_integer_dot_product, revision 3). */
#pragma OPENCL EXTENSION cl_arm_integer_dot_product_accumulate_int8 : enable
#define stic_dot4(w, x, acc) arm_dot_acc(w, x, acc)
#elif STIC_DOT == 3
/* int qcom_dot8_acc(uint p0, uint p1, int acc). Qualcomm publishes no specification. The bytes of p1 are unsigned; those
   of p0 are signed as ML Drift uses them (ml_drift/common/kernels/fully_connected_util.cc, AccumulateUint), but others
   have found them unsigned. So p0 is given bytes that are the same either way: x = low - 128 sign, and w = moved - 128.
   What does not depend on w is shared by the rows that meet the same x. */
#pragma OPENCL EXTENSION cl_qcom_dot_product8 : enable
int stic_dot4(char4 w, char4 x, int acc) {
  uint moved = as_uint(w) ^ 0x80808080u;
  uint low = as_uint(x) & 0x7F7F7F7Fu;
  uint sign = (as_uint(x) >> 7) & 0x01010101u;
  int sum_x = qcom_dot8_acc(low, 0x01010101u, 0) - 128 * qcom_dot8_acc(sign, 0x01010101u, 0);
  return qcom_dot8_acc(low, moved, acc) - 128 * qcom_dot8_acc(sign, moved, sum_x);
}
#elif STIC_DOT == 4
int stic_dot4(char4 w, char4 x, int acc) {
  return acc + (int)w.x * (int)x.x + (int)w.y * (int)x.y + (int)w.z * (int)x.z + (int)w.w * (int)x.w;
}
#endif
