/* stic_run: run a package from the command line, for devices without Python. */
#define _POSIX_C_SOURCE 200809L
#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "platform.h"
#include "stic_run.h"

static const char usage[] =
    "usage: stic_run PACKAGE (--ids N,N,... | --ids-file FILE) [options]\n"
    "\n"
    "Runs the package on token ids and prints the output and what it cost; with --generate, the tokens that follow.\n"
    "\n"
    "  --ids N,N,...      token ids of one input\n"
    "  --types N,N,...    token types, one for each id (default: all 0)\n"
    "  --ids-file FILE    inputs as little-endian int32: a count, then that many ids; again for each input\n"
    "  --runs N           run each input N times (default 1)\n"
    "  --threads K        compute threads (default, and most: as planned)\n"
    "  --lanes K          IO lanes (default, and most: as planned)\n"
    "  --cold             empty the preload buffer before every run\n"
    "  --buffered         read through the page cache\n"
    "  --io-limit BYTES   emulate storage of BYTES a second\n"
    "  --io-requests N    emulate storage that serves N requests a second\n"
    "  --deadline-us N    run the package's best plan for a deadline of N microseconds\n"
    "  --memory-bytes N   run its best plan that claims at most N bytes (default, without both: its first)\n"
    "  --gpu-use MODE     layers planned for a GPU: auto (default), off (on the CPU), required\n"
    "  --gpu-arithmetic A float or int8 (default: int8 where the GPU has a product for it)\n"
    "  --trace FILE       write the trace of the last run, for ui.perfetto.dev\n"
    "  --output FILE      write the outputs as little-endian float32, input after input\n"
    "  --json             print one JSON object\n"
    "  --help             print this\n"
    "\n"
    "Of decoders:\n"
    "\n"
    "  --generate N       after --ids, generate at most N tokens\n"
    "  --stop N,N,...     tokens that end the answer\n"
    "  --temperature T    0 (default): take the likeliest token; above: draw, the more varied the higher\n"
    "  --top-k K          draw from the K likeliest tokens (default 0: all)\n"
    "  --top-p P          draw from the likeliest tokens of together probability P (default 1: all)\n"
    "  --min-p P          draw from tokens that have P times the likeliest one's probability (default 0: all)\n"
    "  --repetition-penalty R  make recent tokens less likely (default 1: do not)\n"
    "  --repetition-tokens N   how many tokens are recent (default 64)\n"
    "  --seed N           of the draws (default 0)\n"
    "  --load FILE        go on from a text that was saved\n"
    "  --save FILE        save the text afterwards\n"
    "\n"
    "Exit status: 0 all runs succeeded, 1 the package or a run failed, 2 wrong usage.\n";

typedef struct {
  const char *package, *ids, *types, *ids_file, *trace, *output, *stops;
  uint64_t runs;
  bool cold, json;
  stic_options options;
  generation generation;
} arguments;

typedef struct {
  int32_t *values; /* inputs one after another */
  int32_t *types;  /* of the only input, or NULL */
  int32_t *lengths;
  size_t count;
} inputs;

static _Noreturn void misuse(const char *what, const char *which) {
  fprintf(stderr, "stic_run: %s%s (see stic_run --help)\n", what, which);
  exit(2);
}

void *need(void *memory) {
  if (memory) return memory;
  fprintf(stderr, "stic_run: out of memory\n");
  exit(1);
}

static uint64_t number(const char *text, const char *option, uint64_t most) {
  char *end;
  errno = 0;
  const unsigned long long value = strtoull(text, &end, 10);
  if (end == text || *end || errno || value > most || *text == '-') misuse("not a number in range: ", option);
  return value;
}

static float real(const char *text, const char *option) {
  char *end;
  const float value = strtof(text, &end);
  if (end == text || *end || !isfinite(value)) misuse("not a number: ", option);
  return value;
}

/* The options of decoders: whether it is one. */
static bool parse_generation(generation *g, const char *name, const char *value) {
  stic_sampling *sampling = &g->sampling;
  if (!strcmp(name, "--generate"))
    g->tokens = (uint32_t)number(value, name, 1 << 24);
  else if (!strcmp(name, "--temperature"))
    sampling->temperature = real(value, name);
  else if (!strcmp(name, "--top-k"))
    sampling->top_k = (uint32_t)number(value, name, UINT32_MAX);
  else if (!strcmp(name, "--top-p"))
    sampling->top_p = real(value, name);
  else if (!strcmp(name, "--min-p"))
    sampling->min_p = real(value, name);
  else if (!strcmp(name, "--repetition-penalty"))
    sampling->repetition_penalty = real(value, name);
  else if (!strcmp(name, "--repetition-tokens"))
    g->recent = (uint32_t)number(value, name, UINT32_MAX);
  else if (!strcmp(name, "--seed"))
    sampling->seed = number(value, name, UINT64_MAX);
  else if (!strcmp(name, "--load"))
    g->load = value;
  else if (!strcmp(name, "--save"))
    g->save = value;
  else
    return false;
  return true;
}

/* The number of a word among the first `count` of `words`. */
static uint32_t choice(const char *value, const char *option, const char *const *words, uint32_t count) {
  for (uint32_t i = 0; i < count; i++)
    if (!strcmp(value, words[i])) return i;
  misuse("not a choice of ", option);
}

static arguments parse(int argc, char **argv) {
  static const char *const uses[] = {"auto", "off", "required"}, *const arithmetics[] = {"default", "float", "int8"};
  arguments a = {
      .runs = 1, .options = STIC_OPTIONS_DEFAULT, .generation = {.recent = 64, .sampling = STIC_SAMPLING_DEFAULT}};
  for (int i = 1; i < argc; i++) {
    const char *name = argv[i];
    if (!strcmp(name, "--help")) {
      fputs(usage, stdout);
      exit(0);
    }
    if (!strcmp(name, "--cold")) {
      a.cold = true;
    } else if (!strcmp(name, "--json")) {
      a.json = true;
    } else if (!strcmp(name, "--buffered")) {
      a.options.buffered = 1;
    } else if (name[0] != '-') {
      if (a.package) misuse("one package at a time: ", name);
      a.package = name;
    } else {
      const char *value = i + 1 < argc ? argv[++i] : NULL;
      if (!value) misuse("a value is missing after ", name);
      if (!strcmp(name, "--ids"))
        a.ids = value;
      else if (!strcmp(name, "--types"))
        a.types = value;
      else if (!strcmp(name, "--ids-file"))
        a.ids_file = value;
      else if (!strcmp(name, "--stop"))
        a.stops = value;
      else if (!strcmp(name, "--trace"))
        a.trace = value;
      else if (!strcmp(name, "--output"))
        a.output = value;
      else if (!strcmp(name, "--runs"))
        a.runs = number(value, name, 1000000);
      else if (!strcmp(name, "--threads"))
        a.options.threads = (uint32_t)number(value, name, 1024);
      else if (!strcmp(name, "--lanes"))
        a.options.lanes = (uint32_t)number(value, name, 1024);
      else if (!strcmp(name, "--io-limit"))
        a.options.io_bytes_per_s = number(value, name, (uint64_t)1 << 40);
      else if (!strcmp(name, "--io-requests"))
        a.options.io_requests_per_s = number(value, name, 1000000000);
      else if (!strcmp(name, "--deadline-us"))
        a.options.deadline_us = (uint32_t)number(value, name, UINT32_MAX);
      else if (!strcmp(name, "--memory-bytes"))
        a.options.memory_bytes = number(value, name, UINT64_MAX);
      else if (!strcmp(name, "--gpu-use"))
        a.options.gpu = choice(value, name, uses, 3);
      else if (!strcmp(name, "--gpu-arithmetic"))
        a.options.gpu_arithmetic = choice(value, name, arithmetics, 3);
      else if (!parse_generation(&a.generation, name, value))
        misuse("unknown option ", name);
    }
  }
  if (!a.package) misuse("no package given", "");
  if (!a.ids == !a.ids_file) misuse("give --ids or --ids-file", "");
  if (a.types && !a.ids) misuse("--types goes with --ids", "");
  if (a.runs == 0) misuse("--runs must be at least 1", "");
  if (a.generation.tokens && (!a.ids || a.types || a.runs > 1 || a.cold || a.output))
    misuse("--generate goes with --ids, and without --types, --runs, --cold and --output", "");
  if (!a.generation.tokens && (a.stops || a.generation.load || a.generation.save))
    misuse("--stop, --load and --save go with --generate", "");
  return a;
}

static int32_t *parse_list(const char *text, const char *option, int32_t *count) {
  size_t most = 1;
  for (const char *p = text; *p; p++) most += *p == ',';
  int32_t *list = need(malloc(most * sizeof *list));
  *count = 0;
  for (char *end;; text = end + 1) {
    errno = 0;
    const long value = strtol(text, &end, 10);
    if (end == text || errno || value < INT32_MIN || value > INT32_MAX || (*end && *end != ','))
      misuse("not a list of numbers: ", option);
    list[(*count)++] = (int32_t)value;
    if (!*end) return list;
  }
}

static inputs read_inputs(const arguments *a) {
  inputs in = {NULL, NULL, NULL, 0};
  if (a->ids) {
    in.lengths = need(malloc(sizeof *in.lengths));
    in.values = parse_list(a->ids, "--ids", in.lengths);
    in.count = 1;
    int32_t n = in.lengths[0];
    if (a->types) in.types = parse_list(a->types, "--types", &n);
    if (n != in.lengths[0]) misuse("--types must have as many numbers as --ids", "");
    return in;
  }
  FILE *file = fopen(a->ids_file, "rb");
  if (!file) misuse("cannot open ", a->ids_file);
  size_t used = 0;
  for (int32_t n; fread(&n, sizeof n, 1, file) == 1;) {
    if (n < 0 || n > 1 << 20) misuse("not a file of token ids: ", a->ids_file);
    in.lengths = need(realloc(in.lengths, (in.count + 1) * sizeof *in.lengths));
    in.values = need(realloc(in.values, (used + (size_t)n + 1) * sizeof *in.values));
    if (fread(in.values + used, sizeof *in.values, (size_t)n, file) != (size_t)n)
      misuse("the file ends inside an input: ", a->ids_file);
    in.lengths[in.count++] = n;
    used += (size_t)n;
  }
  fclose(file);
  if (in.count == 0) misuse("no input in ", a->ids_file);
  return in;
}

static int ascending(const void *a, const void *b) {
  const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
  return (x > y) - (x < y);
}

int failed(const stic_session *session) {
  fprintf(stderr, "stic_run: %s\n", stic_error_message(session));
  return 1;
}

/* A string in JSON: names of devices and sentences hold no control characters but what is left out here. */
static void print_json_string(const char *text) {
  putchar('"');
  for (; *text; text++) {
    if (*text == '"' || *text == '\\') putchar('\\');
    if ((unsigned char)*text >= ' ') putchar(*text);
  }
  putchar('"');
}

/* Numbers of an output: all of them for a program, the first few for a person. */
static void print_output(const float *output, size_t size, bool json) {
  const size_t shown = json || size <= 8 ? size : 8;
  for (size_t i = 0; i < shown; i++) {
    if (json && !isfinite(output[i]))
      printf("%snull", i ? "," : "");
    else
      printf("%s%.9g", i ? (json ? "," : " ") : "", (double)output[i]);
  }
  if (shown < size) printf(" ... (%zu numbers)", size);
}

void print_costs(const stic_session *session, uint64_t *times, uint64_t runs, uint64_t stall_us, bool json) {
  stic_stats stats = {.struct_bytes = sizeof stats};
  stic_info info = {.struct_bytes = sizeof info};
  stic_session_stats(session, &stats);
  stic_session_info(session, &info);
  if (json) {
    printf("\"times_us\":[");
    for (uint64_t i = 0; i < runs; i++) printf("%s%llu", i ? "," : "", (unsigned long long)times[i]);
    printf("],");
  }
  qsort(times, runs, sizeof *times, ascending);
  const unsigned long long median = times[runs / 2], p95 = times[(runs * 95 + 99) / 100 - 1];
  const unsigned long long peak = stats.peak_bytes, claimed = stats.claimed_bytes, rss = stic_peak_rss_bytes();
  const unsigned long long stall = stall_us / runs, read = stats.io_bytes, requests = stats.io_requests;
  const char *device = stic_session_device(session);
  if (json) {
    printf("\"plan\":%u,\"gpu_layers\":%u,\"gpu_builds\":%u,\"device\":", stats.plan, stats.gpu_layers,
           stats.gpu_builds);
    print_json_string(device);
    printf(",\"runs\":%llu,\"threads\":%u,\"lanes\":%u,\"median_us\":%llu,\"p95_us\":%llu,\"predicted_us\":%u,"
           "\"stall_us\":%llu,\"io_bytes\":%llu,\"io_requests\":%llu,\"direct\":%s,\"emulated\":%s,\"peak_bytes\":%llu,"
           "\"claimed_bytes\":%llu,\"rss_bytes\":%llu}\n",
           (unsigned long long)runs, info.threads, info.lanes, median, p95, info.predicted_us, stall, read, requests,
           stats.direct ? "true" : "false", stats.emulated ? "true" : "false", peak, claimed, rss);
  } else {
    if (stats.gpu_layers)
      printf("%u layers on %s\n", stats.gpu_layers, device);
    else if (*device)
      printf("%s\n", device);
    if (info.plans > 1) printf("plan %u of %u, counted from 0\n", stats.plan, info.plans);
    printf("%llu runs: median %llu us, 95 %% within %llu us, predicted %u us; stalled %llu us\n"
           "read %llu bytes in %llu requests, %s%s\n"
           "memory: engine %llu bytes, plan %llu, process at its peak %llu\n",
           (unsigned long long)runs, median, p95, info.predicted_us, stall, read, requests,
           stats.direct ? "past the page cache" : "through the page cache",
           stats.emulated ? ", bandwidth emulated" : "", peak, claimed, rss);
  }
}

static int run_all(stic_session *session, const arguments *a, const inputs *in) {
  uint64_t done = 0, stall_us = 0, *times = need(malloc(a->runs * in->count * sizeof *times));
  FILE *file = a->output ? fopen(a->output, "wb") : NULL;
  if (a->output && !file) misuse("cannot write ", a->output);
  const int32_t *ids = in->values;
  if (a->json) printf("{\"outputs\":[");
  for (size_t i = 0; i < in->count; ids += in->lengths[i++]) {
    const size_t size = stic_session_output_size(session, in->lengths[i]);
    float *output = need(malloc((size + 1) * sizeof *output));
    for (uint64_t r = 0; r < a->runs; r++) {
      stic_stats stats = {.struct_bytes = sizeof stats};
      if (a->cold && stic_session_evict(session, UINT64_MAX)) return failed(session);
      if (stic_session_run(session, ids, in->types, in->lengths[i], output, size)) return failed(session);
      stic_session_stats(session, &stats);
      times[done++] = stats.run_us;
      stall_us += stats.stall_us;
    }
    if (a->json) printf("%s[", i ? "," : "");
    print_output(output, size, a->json);
    printf(a->json ? "]" : "\n");
    if (file && fwrite(output, sizeof *output, size, file) != size) misuse("cannot write ", a->output);
    free(output);
  }
  if (a->json) printf("],");
  if (file && fclose(file)) misuse("cannot write ", a->output);
  print_costs(session, times, done, stall_us, a->json);
  free(times);
  if (a->trace && stic_session_trace_write(session, a->trace)) return failed(NULL);
  return 0;
}

int main(int argc, char **argv) {
  arguments a = parse(argc, argv);
  const inputs in = read_inputs(&a);
  stic_session *session;
  if (stic_session_open(a.package, &a.options, &session)) return failed(NULL);
  if (a.stops) a.generation.stop = parse_list(a.stops, "--stop", &a.generation.stops);
  a.generation.json = a.json;
  int status = a.generation.tokens ? generate(session, &a.generation, in.values, (size_t)in.lengths[0])
                                   : run_all(session, &a, &in);
  if (!status && a.generation.tokens && a.trace && stic_session_trace_write(session, a.trace)) status = failed(NULL);
  stic_session_close(session);
  free(a.generation.stop);
  free(in.values);
  free(in.types);
  free(in.lengths);
  return status;
}
