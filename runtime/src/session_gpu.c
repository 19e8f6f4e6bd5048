/* A session's GPU: whether there is one, and what happens where it fails to open. */
#define _POSIX_C_SOURCE 200809L
#include <stdio.h>
#include <stdlib.h>

#include "session.h"

static bool wanted(const stic_session *s, const stic_options *options) {
  return s->package.gpu && options->gpu != STIC_GPU_OFF;
}

bool stic_session_take_gpu(stic_session *s, const stic_options *options) {
  const stic_header *h = s->package.header;
  const uint64_t shards = (uint64_t)h->blocks * STIC_LAYER_MATRICES * s->package.most_slices;
  stic_gpu *gpu = &s->gpu;
  if (!wanted(s, options)) return true;
  gpu->stage_capacity = STIC_STAGES_OF_BLOCK * h->blocks + 4;
  gpu->stages = stic_session_take(s, gpu->stage_capacity, sizeof *gpu->stages);
  gpu->ends = stic_session_take(s, h->blocks, sizeof *gpu->ends);
  gpu->map = stic_session_take(s, s->package.plan.extents, sizeof *gpu->map);
  gpu->ready = stic_session_take(s, s->package.plan.extents, sizeof *gpu->ready);
  gpu->wait_list = stic_session_take(s, s->package.plan.extents, sizeof *gpu->wait_list);
  gpu->entries = stic_session_take(s, shards * STIC_CODES_ENTRY, sizeof *gpu->entries);
  gpu->stale = stic_session_take(s, h->blocks, sizeof *gpu->stale);
  return gpu->stages && gpu->ends && gpu->map && gpu->ready && gpu->wait_list && gpu->entries && gpu->stale;
}

/* Whether the CPU can do what failed on the GPU: a package that is damaged stays so. */
static bool may_fall_back(const stic_session *s, const stic_options *options, stic_status status) {
  return options->gpu != STIC_GPU_REQUIRED && s->package.gpu->fallback &&
         (status == STIC_GPU || status == STIC_KERNELS || status == STIC_OUT_OF_MEMORY);
}

stic_status stic_session_open_gpu(stic_session *s, const char *path, const stic_options *options) {
  const stic_package *p = &s->package;
  stic_gpu *gpu = &s->gpu;
  if (!p->gpu && options->gpu == STIC_GPU_REQUIRED)
    return stic_fail(&s->error, STIC_GPU, "the package places no layer on a GPU: compile it for a target with one");
  if (!p->gpu) return STIC_OK;
  if (wanted(s, options)) {
    gpu->package = p;
    gpu->record_at = s->record_at;
    gpu->io = &s->io;
    gpu->trace = &s->trace;
    const stic_status status = stic_gpu_open(gpu, path, options->gpu_arithmetic, s->arena, &s->io.shards,
                                             stic_region_at(s, STIC_REGION_TRUNK), &s->error);
    gpu->on = status == STIC_OK;
    if (gpu->on) return STIC_OK;
    stic_gpu_close(gpu);
    if (!may_fall_back(s, options, status)) return status;
    snprintf(gpu->device_text, sizeof gpu->device_text, "on the CPU, because %s", s->error.text);
  } else {
    snprintf(gpu->device_text, sizeof gpu->device_text,
             "on the CPU, because the GPU is switched off (stic_options.gpu)");
  }
  s->io.weights = s->arena;
  if (!stic_fill(s->arena, (size_t)stic_weights_bytes(p)))
    return stic_fail(&s->error, STIC_OUT_OF_MEMORY, "no memory for %llu bytes of weights",
                     (unsigned long long)stic_weights_bytes(p));
  return STIC_OK;
}

const char *stic_session_device(const stic_session *s) { return s ? s->gpu.device_text : ""; }
