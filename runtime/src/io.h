/* IO lanes: threads that read embedding rows and extents in load order, check them, and publish them to compute. */
#ifndef STIC_IO_H
#define STIC_IO_H

#include <pthread.h>

#include "files.h"
#include "gpu.h"
#include "platform.h"
#include "trace.h"

/* What of a resident extent is in the preload buffer. */
typedef struct stic_present {
  uint32_t begin, end;  /* bytes of it that need not be read: whole blocks, the records inside verified */
  uint32_t first, last; /* slices first..last-1: records that are there whole, and verified */
} stic_present;

/* What a lane touches of its stack, at most. It has a larger one, since some systems start no thread with less. */
enum { STIC_LANE_STACK_BYTES = 32 << 10 };

struct stic_io {
  /* Set before stic_io_start. */
  const stic_package *package;
  uint8_t *arena;
  uint8_t *weights; /* what destinations of extents count from: the arena, unless a GPU shares the weights */
  stic_gpu *gpu;    /* for extents in memory that it shares; may be off */
  stic_trace *trace;
  stic_source shards, embeddings;
  uint32_t lanes, row_lanes;            /* that read extents; that read rows, and so all of them */
  uint64_t bytes_per_s, requests_per_s; /* emulated; 0: no limit */
  _Atomic uint32_t *left;               /* [extents] bytes not yet read in this pass */
  stic_present *present;                /* [resident extents] */
  stic_present *spare;                  /* as long: what is present once the plan is changed */
  uint32_t *by_block;                   /* [resident extents] sorted by block */
  uint32_t *order;                      /* [extents] what this pass reads */
  uint32_t *tokens;                     /* [max_length] positions of the input, sorted by token id */
  _Atomic uint32_t *pending;            /* [blocks] extents of the block that this pass has not finished */

  /* The pass. */
  pthread_mutex_t mutex;            /* guards the cursors, `device_free_ns` and `error` */
  uint32_t ordered, extent, offset; /* extents in `order`; the next one; bytes of it already handed out */
  uint32_t rows, row;               /* tokens whose rows are read; the next one */
  const int32_t *ids;               /* of the input */
  uint64_t device_free_ns;
  _Atomic uint32_t rows_pending;
  _Atomic uint32_t computed; /* blocks computed in this run */
  _Atomic uint32_t active;   /* lanes at work */
  _Atomic bool failed, cancelled, stop;
  _Atomic uint64_t bytes, requests;
  stic_error error;   /* valid if `failed` */
  stic_word pass;     /* changes when a pass begins */
  stic_word progress; /* changes when compute may go on */
  stic_word gate;     /* changes when a waiting lane may go on */

  uint32_t started;
  pthread_t handles[STIC_MOST_LANES];
  struct stic_lane {
    struct stic_io *io;
    uint32_t number;
  } contexts[STIC_MOST_LANES];
};

/* Start the lanes. */
stic_status stic_io_start(stic_io *io, uint32_t stack_bytes, stic_error *error);
void stic_io_stop(stic_io *io);

/* Begin a pass: the rows of those of `n` tokens whose ids are not negative, what is missing of resident extents, and the
 * streamed ones of the first `blocks` blocks. */
void stic_io_begin(stic_io *io, const int32_t *ids, uint32_t n, uint32_t blocks);

/* Wait for the embedding rows; for all of a block; give the status of the pass. They return at once where it was
 * cancelled, which whoever computes looks up and has the pass fail for. */
stic_status stic_io_wait_rows(stic_io *io);
stic_status stic_io_wait_block(stic_io *io, uint32_t block);

/* Blocks below `blocks` have been computed: their places in the working buffer are free. Any thread. */
void stic_io_computed(stic_io *io, uint32_t blocks);

/* Have the pass fail, for the first reason that is given. Any thread. */
void stic_io_fail(stic_io *io, const stic_error *error);

/* Wait until the lanes rest; gives the error of the pass, if it failed. */
stic_status stic_io_end(stic_io *io, stic_error *error);

/* What of an extent is in the preload buffer: nothing of a streamed one. (These and what follows: resident.c) */
stic_present stic_io_present(const stic_io *io, uint32_t extent);
uint32_t stic_io_missing_bytes(const stic_io *io, uint32_t extent);

/* What is missing of an extent is about to be read, or has been read and checked. */
void stic_io_reading(stic_io *io, uint32_t extent);
void stic_io_complete(stic_io *io, uint32_t extent);

/* Fill `by_block`. */
void stic_io_sort_resident(stic_io *io);

/* Free at least `bytes` of the preload buffer, top blocks first. */
void stic_io_evict(stic_io *io, uint64_t bytes);

uint64_t stic_io_resident_bytes(const stic_io *io);

/* The package has selected another plan; until then its resident extents were the first `count` of `from`. Move what
 * both plans keep resident to where it is now. */
void stic_io_replan(stic_io *io, const stic_extent *from, uint32_t count);

/* What a lane runs (lane.c); its argument is one of `contexts`. */
void *stic_lane_body(void *lane);

/* One read of embeddings.bin serves the tokens, in order of id, whose rows it has room for; one of a tied row those of its
 * id: the end of that group. */
uint32_t stic_io_row_group_end(const stic_io *io, uint32_t begin);

#endif
