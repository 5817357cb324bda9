# shellcheck shell=bash
# Sourced: chip_flags CHIP [DEVICES] exports what XLA and libtpu should know of a chip: v4 v5e v5p v6e h100 h200
# other. What the user has set stays as it is, flag by flag; only what is missing is added. Any other word is an error (64).

# add_flags VARIABLE FLAG...: append each flag that VARIABLE does not name yet.
add_flags() {
  local variable=$1 flag
  shift
  for flag in "$@"; do
    case " ${!variable:-} " in
      *" ${flag%%=*}="* | *" ${flag%%=*} "*) ;;
      *) printf -v "$variable" '%s' "${!variable:+${!variable} }$flag" ;;
    esac
  done
  export "${variable?}"
}

# libtpu_version: of the environment that runs, or of JINSTR_LIBTPU; empty where none is installed.
libtpu_version() {
  local python=.venv/bin/python
  [ -x "$python" ] || python=python3
  echo "${JINSTR_LIBTPU-$("$python" -c 'from importlib import metadata; print(metadata.version("libtpu"))' 2>/dev/null)}"
}

# Gathers of weights beside matrix products (MaxText's set for FSDP). libtpu 0.0.52 refuses to start with it on any chip
# but v5e ("Continuation fusion for AllGather … not supported"), 0.0.42, which jax 0.10.2 asks for, takes it; versions
# between were not tried and go without. (Tried by compiling for v4:2x2x2, v5e:4x4, v5p:2x2x2 and v6e:4x4 without a TPU.)
async_gathers() {
  add_flags LIBTPU_INIT_ARGS \
    --xla_tpu_enable_async_collective_fusion=true \
    --xla_tpu_enable_async_collective_fusion_fuse_all_gather=true \
    --xla_tpu_enable_async_collective_fusion_multiple_steps=true \
    --xla_tpu_overlap_compute_collective_tc=true \
    --xla_enable_async_all_gather=true
}

gpu_flags() {
  # A tenth is left to NCCL, cuDNN and other processes (evaluation and sampling run beside training); JAX takes the rest at the start.
  export XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.9}"
  if [ "$1" -eq 1 ]; then
    export JAX_OPTIMIZATION_LEVEL="${JAX_OPTIMIZATION_LEVEL:-O1}" # scheduling and loops; there is nothing to communicate
    return
  fi
  export CUDA_DEVICE_MAX_CONNECTIONS="${CUDA_DEVICE_MAX_CONNECTIONS:-1}" # kernels start in the order of the schedule
  export NCCL_NVLS_ENABLE="${NCCL_NVLS_ENABLE:-1}"                       # sums in the NVLink switch
  # Communication beside computation; combined up to a layer's bytes (1 GiB gathers and sums, 128 MiB scatters);
  # pipelined over the layers of the scan, whose loop has two buffers. Command buffers off: with collectives in them
  # nothing overlaps. XLA's own rematerialisation off: jinstr's REMAT decides. (JAX-Toolbox's row for MaxText.)
  add_flags XLA_FLAGS \
    --xla_gpu_enable_latency_hiding_scheduler=true \
    --xla_gpu_enable_command_buffer= \
    --xla_gpu_all_reduce_combine_threshold_bytes=1073741824 \
    --xla_gpu_all_gather_combine_threshold_bytes=1073741824 \
    --xla_gpu_reduce_scatter_combine_threshold_bytes=134217728 \
    --xla_gpu_enable_pipelined_all_gather=true \
    --xla_gpu_enable_pipelined_reduce_scatter=true \
    --xla_gpu_enable_pipelined_all_reduce=true \
    --xla_gpu_enable_while_loop_double_buffering=true \
    --xla_gpu_enable_all_gather_combine_by_dim=false \
    --xla_gpu_enable_reduce_scatter_combine_by_dim=false \
    --xla_disable_hlo_passes=rematerialization
}

chip_flags() {
  local libtpu
  case "$1" in
    v4) ;; # nothing published for v4 goes beyond libtpu's own defaults
    v5e) async_gathers ;;
    v5p | v6e)
      # 96 MiB of v6e's 128 MiB of vector memory for the operands of fused operations: larger tiles, fewer reads of HBM.
      [ "$1" = v5p ] || add_flags LIBTPU_INIT_ARGS --xla_tpu_scoped_vmem_limit_kib=98304
      libtpu=$(libtpu_version) || libtpu=
      case "$libtpu" in 0.0.42 | 0.0.42.*) async_gathers ;; esac
      ;;
    h100 | h200) gpu_flags "${2:-1}" ;;
    other) ;; # nothing is assumed
    *)
      echo "chip_flags: $1 is none of v4 v5e v5p v6e h100 h200 other" >&2
      return 64
      ;;
  esac
}

# show_command COMMAND WORDS…: prints it, with the variables that these scripts set.
show_command() {
  local variable
  for variable in JAX_PLATFORMS XLA_FLAGS LIBTPU_INIT_ARGS XLA_PYTHON_CLIENT_MEM_FRACTION JAX_OPTIMIZATION_LEVEL \
    CUDA_DEVICE_MAX_CONNECTIONS NCCL_NVLS_ENABLE TF_CPP_MIN_LOG_LEVEL; do
    if [ -n "${!variable:-}" ]; then printf '%s=%q \\\n' "$variable" "${!variable}"; fi
  done
  printf '%q ' "$@"
  echo
}
