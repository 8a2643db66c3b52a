#!/usr/bin/env bash
# One training on several hosts. Start it on each within a minute, with the same version, data and configuration:
#
#     NODES=2 PER_NODE=8 MASTER=first-host:29500 examples/torchrun.sh config.yaml --out /shared/runs
#
# MASTER     a host among them, and a free port there
# NODES      hosts
# PER_NODE   processes on each: its GPUs, or 1 on the CPU
# RUN_ID     a name for this training, where hosts share MASTER with another
# LOCAL_ADDR this host's address, where its name does not lead the others to it; then GLOO_SOCKET_IFNAME (and
#            NCCL_SOCKET_IFNAME) name the interface too
# PYTHON     the interpreter
#
# --out is a folder that all hosts share. With --resume it may be started again whenever it was broken off.
set -eu
exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes "${NODES:-2}" --nproc-per-node "${PER_NODE:-1}" \
    --rdzv-backend c10d --rdzv-id "${RUN_ID:-fastseq}" --rdzv-endpoint "${MASTER:?is host:port of one of the hosts}" \
    --rdzv-conf join_timeout=60 ${LOCAL_ADDR:+--local-addr "$LOCAL_ADDR"} \
    -m fastseq.cli train "$@"
