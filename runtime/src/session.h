/* A package being run. */
#ifndef STIC_SESSION_H
#define STIC_SESSION_H

#include <sys/types.h>

#include "io.h"
#include "kernels.h"
#include "pool.h"
#include "versions.h"

/* Where the codes of one slice's matrix are. */
typedef struct stic_codes {
  const uint8_t *planes[8];
  const int8_t *table;
  const uint8_t *ratios;   /* (rows / 16, groups, 16), of a store in groups; else outliers: */
  const uint16_t *entries; /* position, float16 */
  const uint32_t *starts;  /* first entry of each block of 16 rows */
  uint32_t bits;
  int32_t dense; /* the table's value under every outlier */
} stic_codes;

/* At most, of a layer: 4 quantisations, 4 products, attention, 2 norms, 2 hand-overs. */
enum { STIC_STAGES_OF_BLOCK = 13 };

/* What a decoder's session holds of its text, beside region `cache`. */
struct stic_text {
  uint32_t position; /* tokens */
  bool logits;       /* region `logits` has those of the last one */
  uint64_t *marks;   /* scratch of the sampler */
  float *zeros;      /* for biases and betas that the model does not have */
};

struct stic_session {
  stic_package package;
  uint8_t *index;
  uint8_t *arena;
  uint64_t *record_at; /* [record] where an extent puts it, from io.weights; 0 as well where the plan has none */
  stic_codes *codes;   /* [slice], of the matrix being multiplied with */
  stic_kernels kernels;
  stic_pool pool;
  stic_io io;
  stic_gpu gpu;
  stic_trace trace;
  pid_t process;
  _Atomic bool busy;
  uint64_t index_bytes, bookkeeping_bytes, reserved_bytes; /* the last: addresses of the arena, for the largest plan */
  uint64_t runs, run_ns, stall_ns;
  bool emulated;
  struct stic_text text;
  stic_error error;
};

static inline void *stic_region_at(const stic_session *s, uint32_t region) {
  return s->arena + s->package.regions[region].offset;
}

static inline void *stic_trunk_at(const stic_session *s, uint64_t offset) {
  return s->arena + s->package.regions[STIC_REGION_TRUNK].offset + offset;
}

/* Note a stage of compute that began at begin_ns. */
static inline void stic_stage_done(stic_session *s, uint32_t kind, int32_t layer, uint64_t begin_ns) {
  const stic_event event = {kind,     layer,    STIC_TRACK_COMPUTE,       0, 0, 0, 0, 0,
                            begin_ns, begin_ns, stic_trace_now(&s->trace)};
  stic_trace_add(&s->trace, event);
}

/* Whether positions skip any of the input's `n` tokens (embed.c). */
bool stic_holds_padding(const stic_session *s, uint32_t n);

/* Embed `n` tokens whose rows have been read; leaves x and its quantised form (embed.c). */
void stic_compute_embedding(stic_session *s, uint32_t n);

/* Run one layer on x; with `quantize`, leaves its quantised form for the next one (encoder.c). */
void stic_compute_layer(stic_session *s, uint32_t layer, uint32_t n, bool quantize);

/* Pooling, the head's linear maps, normalisation; leaves the result in region `output` (head.c). */
void stic_compute_head(stic_session *s, uint32_t n);

/* Leave the quantised form of x for a layer, as the layer before it would have (encoder.c). */
void stic_quantize_hidden(stic_session *s, uint32_t layer, uint32_t n);

/* Open the GPU if the package and the options want one. Where it fails and the plan allows that, its layers run on the
 * CPU (session_gpu.c). */
stic_status stic_session_open_gpu(stic_session *s, const char *path, const stic_options *options);
bool stic_session_take_gpu(stic_session *s, const stic_options *options);

/* Note where the extents of the plan that is selected put each record (session_plan.c). */
void stic_session_place_records(stic_session *s);

/* Begin a call, which is `name`, and end it. Where the status is not STIC_OK, it has ended already: for STIC_BUSY the
 * message belongs to the call under way. */
stic_status stic_session_enter(stic_session *s, const char *name);
void stic_session_leave(stic_session *s);

/* Put the embedding rows of a resident table in their place (run.c). */
stic_status stic_place_rows(stic_session *s, const int32_t *ids, uint32_t n);

/* Note how long compute, here or on the GPU, waited for a block since begin_ns (run.c). */
void stic_stalled(stic_session *s, int32_t block, bool on_gpu, uint64_t begin_ns);

/* The sentence of a call on this thread that failed and had no session. */
stic_error *stic_error_without_session(void);

/* Memory for bookkeeping, zeroed and counted; NULL if there is none. */
void *stic_session_take(stic_session *s, uint64_t count, size_t size);

/* Quantise one tile of k features into the shared buffers (matrix.c). */
void stic_quantize_tile(stic_session *s, const float *source, uint32_t tile, uint32_t k);

#endif
