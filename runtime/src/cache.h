/* Keys and values of the text that a decoder's session holds, and the file that they are saved to. */
#ifndef STIC_CACHE_H
#define STIC_CACHE_H

#include "session.h"

/* Bytes of a key's or value's feature. */
static inline uint32_t stic_cache_width(const stic_package *p) { return p->model->cache == STIC_CACHE_INT8 ? 1 : 2; }

/* Bytes of what the cache holds for a block, nothing for other kinds than attention; and for all blocks. */
uint64_t stic_cache_block_bytes(const stic_package *package, uint32_t block);
uint64_t stic_cache_bytes(const stic_package *package);

/* One stretch of what a text of some length has in the arena. */
typedef struct stic_part {
  uint8_t *at;
  uint64_t bytes;
  uint32_t bits; /* of each float in it: 16 or 32; 8: integers, all of which are good */
} stic_part;

/* Where the walk over the stretches of a text stands; zeros to begin with. */
typedef struct stic_cursor {
  uint32_t block, head, part;
  uint64_t at; /* of the block, in region `cache` */
  bool logits; /* as the last stretch */
} stic_cursor;

/* The next stretch of a text of `position` tokens, in the order of the file. False: that was all. */
bool stic_cache_next(const stic_session *session, uint32_t position, stic_cursor *cursor, stic_part *part);

/* What a saved text depends on: the model, its weights, and the bits that the plan gives them. */
uint64_t stic_cache_identity(const stic_package *package);

/* Save and load (state.c). */
stic_status stic_state_save(stic_session *session, const char *path);
stic_status stic_state_load(stic_session *session, const char *path);

#endif
