/* stic: run a transformer package under the memory and time it was planned for.
 *
 * A package is a directory that `stic compile` writes. A session is a package being run. In full:
 *
 *     stic_session *session;
 *     if (stic_session_open("model.stic", NULL, &session) != STIC_OK)
 *         return fprintf(stderr, "%s\n", stic_error_message(NULL)), 1;
 *
 *     int32_t ids[] = {101, 7592, 102};
 *     size_t capacity = stic_session_output_size(session, 3);        // in floats
 *     float *output = malloc(capacity * sizeof *output);
 *     if (stic_session_run(session, ids, NULL, 3, output, capacity) != STIC_OK)
 *         fprintf(stderr, "%s\n", stic_error_message(session));
 *
 *     stic_session_close(session);
 *
 * The package of a decoder goes on where it stopped, a token or a thousand at a time:
 *
 *     stic_sampling sampling = STIC_SAMPLING_DEFAULT;
 *     int32_t ids[MOST] = {504, 2365, 13}, n = 3, token = 0;
 *     if (stic_session_extend_ids(session, ids, n) != STIC_OK) ...         // the prompt
 *     while (n < MOST && stic_session_sample(session, &sampling, ids, n, &token) == STIC_OK && token != stop) {
 *         ids[n++] = token;
 *         if (stic_session_extend_ids(session, &token, 1) != STIC_OK) ...
 *     }
 *
 * Memory. `stic_session_open` takes all the memory the session will ever hold: one arena of the size the plan
 * claims, the package's index, bookkeeping, and the stacks of its threads. `stic_session_run` and
 * `stic_session_extend` allocate nothing.
 * A change of plan (see below) takes or gives back the end of the arena, and nothing else.
 * Whatever a caller passes in stays the caller's; the session keeps no pointer to it after the call.
 *
 * Threads. A session starts its own compute threads and IO lanes. Different sessions are independent, also two
 * sessions on one package. One session serves one call at a time: a call that finds another one under way returns
 * STIC_BUSY and changes nothing; only stic_session_cancel is meant for that. A session belongs to the process that opened it; after fork, the child gets
 * STIC_WRONG_PROCESS and must open its own.
 *
 * Processors. Where a device's cores differ, its package names the cores that compute should run on. A session's
 * compute threads run only on those of them that the thread which opened it may use. The thread that calls
 * stic_session_run or stic_session_extend does the same during the call, and gets its own cores back afterwards. If the opening thread may
 * use none of the named cores, nothing is moved. IO lanes run on any core.
 *
 * GPU. Where a package places layers on a GPU, they run there through the OpenCL library of the device ($STIC_OPENCL
 * names another one, $STIC_OPENCL_DEVICE a part of the name of another device than the first GPU). The first session on a
 * device compiles the package's kernels for it and leaves the result beside the package, if it can write there. The
 * driver allocates as it likes, also in a run; what the session asks it for is part of the claim. A run that fails on the
 * GPU (STIC_GPU) ends the session's use of it: later runs fail too, and the package has to be opened again.
 *
 * Plans. A package may carry several plans of its model, each for a deadline and an amount of memory. A session runs
 * one of them at a time, at first the one that stic_options asks for, and changes over between two runs:
 *
 *     stic_session_set_budget(session, 40000, 8 << 20, NULL);        // 40 ms, 8 MiB
 *
 * What both plans keep in memory stays there, moved to its new place; what the new one keeps beyond that is read by the
 * next run, which thus takes longer than the plan says. Runs then give what a session opened with that plan gives.
 *
 * Decoders. The session has a position: how many tokens it holds. For each it keeps keys and values, in the arena, which
 * has room for stic_info.max_length tokens. stic_session_extend computes further tokens, and leaves the logits of the last
 * one to sample from. stic_session_rewind goes back to any position, which costs nothing; the tokens up to there need not
 * be computed again. A text can be saved to a file and loaded in another session of the same model. One that goes back, is
 * loaded, or was given in other pieces continues with the same bits.
 *
 * A call that takes too long can be cancelled from another thread. An extend that was cancelled, or failed, has changed
 * nothing but time: the position, and the logits of the last token, are those from before.
 *
 * A change of plan keeps the position. The tokens up to there were then computed by the plan before; what is computed from
 * now on reads their keys and values as they are.
 *
 * Versions. A structure that a caller passes begins with its size, struct_bytes, and versions only add fields behind the
 * others (never in padding that ends a structure), so that an engine and a caller of other versions understand each
 * other. stic_session_open takes the defaults for fields that an older caller's options lack; of a newer caller's it
 * refuses those it does not know, unless they are zero. What a session tells about itself it writes as far as the
 * caller's structure goes, with zeros in fields that it does not know; struct_bytes stays as the caller set it.
 *
 * Errors. Every function that can fail returns a status; `stic_error_message` gives the sentence that goes with it.
 * After a failed call the session is usable: an input that was refused changed nothing, and a run that failed on
 * reading (STIC_IO, STIC_PACKAGE_CORRUPT) reads again the next time. The output is written only on success.
 */
#ifndef STIC_H
#define STIC_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define STIC_VERSION_MAJOR 0
#define STIC_VERSION_MINOR 3

#if defined(__GNUC__)
#define STIC_API __attribute__((visibility("default")))
#else
#define STIC_API
#endif

/* Gaps are left so that a new status can stand beside its kin. */
typedef enum stic_status {
  STIC_OK = 0,
  STIC_INVALID_ARGUMENT = 10, /* a null pointer, a negative number, an option out of range */
  STIC_INPUT_LENGTH = 11,     /* no tokens, or more than the package was compiled for */
  STIC_TOKEN_RANGE = 12,      /* a token id or type that the model does not have */
  STIC_OUTPUT_CAPACITY = 13,  /* the output array is too small */
  STIC_NO_PLAN = 14,          /* the package has no plan for this deadline and memory */
  STIC_POSITION = 15,         /* a token that does not continue the text, or logits that there are not */
  STIC_CONTEXT_FULL = 16,     /* more tokens than the package has memory for */
  STIC_NOT_THIS_MODEL = 17,   /* a decoder's call on an encoder's package, or the other way round */
  STIC_STATE = 18,            /* a file of a state that is damaged, or of another model or plan */
  STIC_BUSY = 20,             /* another call on this session is under way */
  STIC_WRONG_PROCESS = 21,    /* the session was opened before a fork */
  STIC_CANCELLED = 22,        /* by stic_session_cancel */
  STIC_PACKAGE_MISSING = 30,  /* a file of the package cannot be opened */
  STIC_PACKAGE_CORRUPT = 31,  /* truncated, a checksum that does not match, or contents that make no sense */
  STIC_PACKAGE_VERSION = 32,  /* written by a newer stic, or by one of an older format */
  STIC_UNSUPPORTED_CPU = 40,  /* compiled for another architecture, or for instructions this CPU lacks */
  STIC_KERNELS = 41,          /* kernels.so or kernels.cl cannot be loaded or lacks a kernel */
  STIC_GPU = 45,              /* no OpenCL, a device that refuses the package, or one that failed in a run */
  STIC_IO = 50,               /* the operating system failed to read */
  STIC_OUT_OF_MEMORY = 60,
  STIC_OUT_OF_THREADS = 61
} stic_status;

typedef struct stic_session stic_session;

/* How to open a session. Start from STIC_OPTIONS_DEFAULT and change what matters. */
typedef struct stic_options {
  uint32_t struct_bytes;      /* sizeof(stic_options); see "Versions" above */
  uint32_t threads;           /* compute threads, the caller's included; 0: as planned, which is also the most */
  uint32_t lanes;             /* IO threads that read weights; 0: as planned, which is also the most */
  uint32_t buffered;          /* 1: read through the page cache even where O_DIRECT works */
  uint64_t io_bytes_per_s;    /* emulate storage of this bandwidth; 0: the storage as it is */
  uint32_t gpu;               /* stic_gpu_use */
  uint32_t gpu_arithmetic;    /* stic_gpu_arithmetic: 0, as the device has a product of int8; 1; 2, even without one */
  uint32_t deadline_us;       /* open with the best plan that meets these two, as stic_session_set_budget chooses it; */
  uint64_t memory_bytes;      /* both 0: with the default plan */
  uint64_t io_requests_per_s; /* emulate storage that serves no more requests than this; 0: as many as there are */
} stic_options;
#define STIC_OPTIONS_DEFAULT {(uint32_t)sizeof(stic_options), 0, 0, 0, 0, 0, 0, 0, 0, 0}

/* What to do with layers that are planned for a GPU. */
typedef enum stic_gpu_use {
  STIC_GPU_AUTO = 0,    /* run them there; on the CPU where that fails and the plan still holds */
  STIC_GPU_OFF = 1,     /* run them on the CPU */
  STIC_GPU_REQUIRED = 2 /* run them there or not at all */
} stic_gpu_use;

/* How a GPU multiplies quantised weights. */
typedef enum stic_gpu_arithmetic {
  STIC_FLOAT_ARITHMETIC = 1, /* with activations as they are */
  STIC_INT8_ARITHMETIC = 2   /* with activations quantised by token, as the CPU does */
} stic_gpu_arithmetic;

/* How to choose the next token. Start from STIC_SAMPLING_DEFAULT, which takes the likeliest one, and change what matters.
 * sample.h of the engine's sources has the exact definition, with which a seed gives the same text on every device. */
typedef struct stic_sampling {
  uint32_t struct_bytes;    /* sizeof(stic_sampling); see "Versions" above */
  uint32_t top_k;           /* draw from so many of the likeliest tokens; 0: from all */
  float temperature;        /* above 1: more varied; 0: take the likeliest token */
  float top_p;              /* draw from the likeliest tokens that together have this probability; 1: from all */
  float min_p;              /* draw from tokens that have this part of the likeliest one's probability; 0: from all */
  float repetition_penalty; /* above 1: recent tokens become less likely; 1: they do not */
  uint64_t seed;
} stic_sampling;
#define STIC_SAMPLING_DEFAULT {(uint32_t)sizeof(stic_sampling), 0, 0.0f, 1.0f, 0.0f, 1.0f, 0}

/* What a package is. */
typedef struct stic_info {
  uint32_t struct_bytes; /* set by the caller: sizeof(stic_info) */
  uint32_t hidden;
  uint32_t layers;
  uint32_t slices; /* slices per layer of the whole model */
  uint32_t vocabulary;
  uint32_t types;      /* token types; 0: the model has none */
  uint32_t max_length; /* tokens of the longest input; of a decoder's longest text, what it generates included */
  uint32_t output_features;
  uint32_t output_per_token; /* 1: features for each token; 0: for the whole input */
  uint32_t threads;          /* as opened */
  uint32_t lanes;            /* as opened */
  uint32_t deadline_us;      /* that the active plan was made for; 0: none */
  uint32_t predicted_us;     /* what it predicts for the longest input */
  uint32_t plans;            /* that the package carries: at least 1 */
  uint64_t claimed_bytes;    /* memory that the active plan claims */
  uint32_t decoder;          /* 1: extend and sample; 0: run */
  uint32_t chunk;            /* tokens that a decoder computes at once, at most */
  uint32_t cache_bits;       /* of its keys and values: 8 or 16 */
  uint32_t reserved;         /* 0 */
  uint64_t cache_bytes;      /* for all of max_length tokens */
} stic_info;

/* A plan of the package. */
typedef struct stic_plan {
  uint32_t struct_bytes; /* set by the caller: sizeof(stic_plan) */
  uint32_t deadline_us;  /* that it was made for; 0: none */
  uint32_t predicted_us; /* what it predicts for the longest input */
  uint32_t reserved;
  uint64_t claimed_bytes; /* memory that it claims */
  uint64_t preload_bytes; /* of it, what it keeps of shards between runs */
  double quality;         /* more is better; comparable among the plans of one package only */
} stic_plan;

/* What the session holds, and what the last run did. */
typedef struct stic_stats {
  uint32_t struct_bytes;      /* set by the caller: sizeof(stic_stats) */
  uint32_t direct;            /* 1: reads bypass the page cache */
  uint32_t emulated;          /* 1: slower storage is emulated (stic_options.io_bytes_per_s, io_requests_per_s) */
  uint32_t gpu_layers;        /* that run on the GPU */
  uint64_t arena_bytes;       /* of the active plan, as are peak_bytes and claimed_bytes */
  uint64_t bookkeeping_bytes; /* index, tables made from it, trace */
  uint64_t stack_bytes;       /* that the threads which the session started may touch */
  uint64_t gpu_bytes;         /* of memory objects beside the weights, which count as part of the arena */
  uint64_t peak_bytes;        /* the sum of the four above */
  uint64_t claimed_bytes;
  uint64_t resident_bytes; /* of the preload buffer that is loaded now */
  uint64_t runs;           /* completed since open */
  uint64_t run_us;         /* last run, from call to output */
  uint64_t stall_us;       /* of it, compute waiting for IO */
  uint64_t io_bytes;       /* read in the last run */
  uint64_t io_requests;
  uint32_t gpu_builds;     /* programs compiled from source since open; 0: taken from the cache beside the package */
  uint32_t gpu_arithmetic; /* stic_gpu_arithmetic; 0: no GPU */
  uint32_t plan;           /* number of the active plan */
  uint32_t reserved;       /* 0 */
} stic_stats;

/* What an event of the trace is about. */
typedef enum stic_event_kind {
  STIC_EVENT_STALL = 0, /* compute waited for `layer`'s extents (layer -1: for embedding rows) */
  STIC_EVENT_EMBED = 1,
  STIC_EVENT_QUANTIZE = 2,
  STIC_EVENT_QKV = 3,
  STIC_EVENT_ATTENTION = 4,
  STIC_EVENT_OUT = 5,
  STIC_EVENT_NORM = 6,
  STIC_EVENT_UP = 7,
  STIC_EVENT_DOWN = 8,
  STIC_EVENT_HEAD = 9,
  STIC_EVENT_HAND_OVER = 10, /* hidden states between the CPU and the GPU */
  STIC_EVENT_CACHE = 11,     /* a decoder's queries and keys, normalised and turned; keys and values kept */
  STIC_EVENT_READ = 20,      /* one request of an extent */
  STIC_EVENT_ROWS = 21,      /* one block of embedding rows */
  STIC_EVENT_CHECK = 22      /* checksums of an extent */
} stic_event_kind;

/* Tracks that are not IO lanes. */
enum { STIC_TRACK_COMPUTE = -1, STIC_TRACK_GPU = -2 };

typedef struct stic_event {
  uint32_t kind;                /* stic_event_kind */
  int32_t layer;                /* -1: none */
  int32_t track;                /* STIC_TRACK_COMPUTE, STIC_TRACK_GPU, or the IO lane */
  uint16_t level, first, count; /* of the extent, where there is one */
  uint16_t reserved;
  uint32_t bytes;     /* that were read */
  uint64_t submit_ns; /* when the lane took the request; it may then have waited for its place in memory */
  uint64_t begin_ns;  /* all times count from the start of the run */
  uint64_t end_ns;
} stic_event;

/* Open the package in directory `path`. `options` may be NULL. Checks the package, loads its kernels, takes all
 * memory, starts all threads and fills the preload buffer. On failure *session is NULL and
 * stic_error_message(NULL) says why. */
STIC_API stic_status stic_session_open(const char *path, const stic_options *options, stic_session **session);

/* Run one input of n tokens. `types` may be NULL (all 0). Writes stic_session_output_size(session, n) floats:
 * (n, features) for a package that gives features per token, else (features). */
STIC_API stic_status stic_session_run(stic_session *session, const int32_t *ids, const int32_t *types, int32_t n,
                                      float *output, size_t capacity);

/* A token to compute: its id, how many tokens of its text come before it, and which text it belongs to. */
typedef struct stic_token {
  int32_t id;
  uint32_t position;
  uint32_t sequence; /* 0: sessions of this version hold one text */
} stic_token;

/* Extend the text by n tokens, whose positions go on from that of the session. They are computed in chunks. `logits` is
 * NULL, and then only the last token's are computed, which the session keeps; or has room for n * vocabulary floats, for
 * those of every token. It is written as chunks are computed, also by a call that then fails. */
STIC_API stic_status stic_session_extend(stic_session *session, const stic_token *tokens, size_t n, float *logits,
                                         size_t capacity);

/* The same for ids at the next positions, without logits of every token. */
STIC_API stic_status stic_session_extend_ids(stic_session *session, const int32_t *ids, size_t n);

/* Copy the logits of the last token, (vocabulary) floats. STIC_POSITION: there are none, because no token was computed
 * since the text was opened or taken back. */
STIC_API stic_status stic_session_logits(stic_session *session, float *logits, size_t capacity);

/* Choose the token that follows, without extending the text by it. `recent` are the tokens that the repetition penalty
 * concerns, NULL if there are none. The token depends on the logits, the settings, these tokens and the position only. */
STIC_API stic_status stic_session_sample(stic_session *session, const stic_sampling *sampling, const int32_t *recent,
                                         size_t recent_tokens, int32_t *token);

/* Tokens that the session holds: the position of the next one. 0 for NULL, and for an encoder. */
STIC_API uint32_t stic_session_position(const stic_session *session);

/* Go back to a position at or before the present one. There are no logits then, until a token is computed; only where the
 * position is the present one, they stay. */
STIC_API stic_status stic_session_rewind(stic_session *session, uint32_t position);

/* Write the text's keys, values and logits to a file, which is there whole afterwards, or as it was before (STIC_IO). */
STIC_API stic_status stic_session_save(stic_session *session, const char *path);

/* Take up what a session of the same model, under a plan of the same bits, saved. STIC_STATE: the file is of another one,
 * or damaged, and nothing changed; or it became so while it was read (STIC_IO: or could not be read any more), and then
 * the session holds no text. */
STIC_API stic_status stic_session_load(stic_session *session, const char *path);

/* Have an extend that is under way on another thread end soon, with STIC_CANCELLED. Where there is none, nothing
 * happens. Any thread; also from a signal's handler. */
STIC_API void stic_session_cancel(stic_session *session);

/* Floats that a run of n tokens writes. */
STIC_API size_t stic_session_output_size(const stic_session *session, int32_t n);

/* Give back at least `bytes` of the preload buffer, or all of it, to the operating system; the top layers go first,
 * because the next run needs the bottom ones first (STI, arXiv 2207.05022). That run reads them again. */
STIC_API stic_status stic_session_evict(stic_session *session, uint64_t bytes);

/* What plan `number` of the package is; 0 is the default. */
STIC_API stic_status stic_session_plan(const stic_session *session, uint32_t number, stic_plan *plan);

/* Change to the best plan that meets a deadline and fits into memory, where 0 is no limit: of those that were made for
 * no later deadline (or, if for none, predict no later end) and claim no more memory, the one of highest quality; of
 * equals, the one that claims least. *number is its number; `number` may be NULL. STIC_NO_PLAN: there is no such plan,
 * and the sentence says what there is; STIC_OUT_OF_MEMORY: no memory for a larger one. Either way nothing changed. */
STIC_API stic_status stic_session_set_budget(stic_session *session, uint32_t deadline_us, uint64_t memory_bytes,
                                             uint32_t *number);

/* The GPU that layers run on and its driver; or, "on the CPU, because ...", why layers that are planned for one do not;
 * or "" where none is planned. Valid as long as the session. */
STIC_API const char *stic_session_device(const stic_session *session);

STIC_API stic_status stic_session_info(const stic_session *session, stic_info *info);
STIC_API stic_status stic_session_stats(const stic_session *session, stic_stats *stats);

/* Copy the events of the last run, at most `capacity` of them, in no particular order. *count is how many there are;
 * `events` may be NULL if capacity is 0. */
STIC_API stic_status stic_session_trace(const stic_session *session, stic_event *events, size_t capacity,
                                        size_t *count);

/* Write the trace of the last run as JSON that ui.perfetto.dev and chrome://tracing open. */
STIC_API stic_status stic_session_trace_write(const stic_session *session, const char *path);

/* End the session and free all it holds. NULL is allowed. STIC_BUSY: a run is under way, nothing happened. */
STIC_API stic_status stic_session_close(stic_session *session);

/* The sentence of the last failure of `session`, or, with NULL, of the last call on this thread that failed and had
 * no session. Valid until the next call on the session (NULL: on the thread). Never NULL. */
STIC_API const char *stic_error_message(const stic_session *session);

/* Version of the library: major * 65536 + minor. */
STIC_API uint32_t stic_version(void);

#ifdef __cplusplus
}
#endif
#endif
