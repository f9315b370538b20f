"""The cache: hits, times, and the balance and disks of the CAS."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from dashboards.panels import (
    CAS_CLAIMS,
    CAS_PODS,
    FARM,
    OURS,
    board,
    graph,
    hit_rate,
    number,
    or_zero,
    per_second,
    quantile,
    row,
    share,
)

_OPERATIONS = "nativelink_cache_operations_total"
_BYTES = "nativelink_cache_io_bytes_total"
_SLICES = f'{OURS},cache_type="cas_slice"'
_WRITES = f'{OURS},cache_type="cas_slice",cache_operation_name="write"'
_USED = f"kubelet_volume_stats_used_bytes{{{CAS_CLAIMS}}}"


def made() -> Dashboard:
    """Return the dashboard."""
    return board(
        "cache",
        "Cache",
        "Does the cache have what builds ask for, how long does it take, and how full is it?",
        row("Hits"),
        share(
            "Hit rate of the action cache",
            "Lookups of results by clients, in the range. Normal: what it was on the days before. Low after a change "
            "of compiler or flags; otherwise: runbook NativeLinkCacheHitRateCollapsed.",
            (hit_rate("ac", "$__range"), "clients"),
        ),
        share(
            "Hit rate of the scheduler's lookup",
            "Actions that were asked for and had a result already, in the range. Normal: low, because clients look "
            "first.",
            (hit_rate("ac_lookup", "$__range"), "scheduler"),
        ),
        share(
            "Hit rate of the CAS",
            "Reads of content, and questions for what is missing, in the range. Normal: low while a build uploads new "
            "inputs, high otherwise.",
            (hit_rate("cas", "$__range"), "CAS"),
        ),
        graph(
            "Hit rates",
            "percentunit",
            "Normal: the rate of the action cache falls only after a change of compiler or flags. It falls with a CAS "
            "pod that is away or has lost its volume.",
            (hit_rate("ac"), "action cache, clients"),
            (hit_rate("ac_lookup"), "action cache, scheduler"),
            (hit_rate("cas"), "CAS"),
            top=1,
        ),
        graph(
            "Lookups of results a second",
            "ops",
            "Normal: follows the builds. Misses become actions.",
            (
                per_second(
                    _OPERATIONS,
                    f'{OURS},cache_type=~"ac|ac_lookup",cache_operation_name="read"',
                    "cache_operation_result",
                ),
                "{{cache_operation_result}}",
            ),
            stacked=True,
        ),
        graph(
            "Worker's own store",
            "percentunit",
            "Part of the inputs that a worker had on its disk already. Normal: rises with the time that a worker "
            "lives. Low with old workers: raise fast_store_size and scratch_size.",
            (
                per_second(
                    "nativelink_store_tier_operations_total",
                    f'{OURS},component="worker",store_tier="fast",store_result="hit"',
                    "pool",
                )
                + " / "
                + per_second(
                    "nativelink_store_tier_operations_total", f'{OURS},component="worker",store_tier="fast"', "pool"
                ),
                "{{pool}}",
            ),
            top=1,
        ),
        graph(
            "Operations that failed a second",
            "ops",
            "Normal: 0. Uploads with wrong bytes: runbook NativeLinkUploadsRefused. Others: runbook "
            "NativeLinkUploadErrors.",
            (
                or_zero(
                    per_second(_OPERATIONS, f'{OURS},cache_operation_result="error"', "cache_type"),
                ),
                "{{cache_type}}",
            ),
        ),
        row("Times and bytes"),
        graph(
            "Reads, 95 % below",
            "ms",
            "cas and ac are what clients see, cas_slice and ac_slice a pod's own disk. Normal: milliseconds on disk. A "
            "slow disk raises all of them, a slow network only cas and ac. Without low latency each hop adds 40 "
            "ms.",
            (
                quantile(
                    0.95,
                    "nativelink_cache_operation_duration_milliseconds",
                    f'{OURS},cache_operation_name="read"',
                    "cache_type",
                ),
                "{{cache_type}}",
            ),
        ),
        graph(
            "Writes, 95 % below",
            "ms",
            "Normal: milliseconds on disk, for small files. Seconds: the disk is at its limit, or the store is full "
            "and frees room.",
            (
                quantile(
                    0.95,
                    "nativelink_cache_operation_duration_milliseconds",
                    f'{OURS},cache_operation_name="write"',
                    "cache_type",
                ),
                "{{cache_type}}",
            ),
        ),
        graph(
            "Calls that failed a second, by code",
            "ops",
            "gRPC codes of calls to the CAS, without 0 (OK) and 5 (not found, a miss). Normal: none. 3: wrong bytes. "
            "8: no room. 14: a CAS pod is away.",
            (
                or_zero(
                    per_second(
                        "nativelink_rpc_server_duration_seconds_count",
                        f'{OURS},component="cas",rpc_grpc_status_code!~"0|5"',
                        "rpc_grpc_status_code",
                    )
                ),
                "{{rpc_grpc_status_code}}",
            ),
        ),
        graph(
            "Bytes that clients read and write",
            "Bps",
            "At the public listener. Workers and the scheduler go to the slices instead. Normal: follows the builds.",
            (per_second(_BYTES, f'{OURS},cache_type="cas"', "cache_operation_name"), "{{cache_operation_name}}"),
        ),
        graph(
            "Bytes from and to the disks",
            "Bps",
            "At the slices. Near what the volumes can do: use a faster class, or more pods.",
            (per_second(_BYTES, _SLICES, "cache_operation_name"), "{{cache_operation_name}}"),
        ),
        graph(
            "Size of what is written",
            "bytes",
            "Normal: what it was on the days before. Many small files fill inodes before bytes.",
            (quantile(0.5, "nativelink_cache_item_size_bytes", _WRITES), "half below"),
            (quantile(0.95, "nativelink_cache_item_size_bytes", _WRITES), "95 % below"),
        ),
        row("Pods and disks of the CAS"),
        graph(
            "Operations by pod",
            "ops",
            "Normal: about the same on all pods. One without any: it is away. One with far more: one file is in "
            "demand.",
            (per_second(_OPERATIONS, _SLICES, "pod"), "{{pod}}"),
        ),
        graph(
            "Volumes in use",
            "percentunit",
            "Normal: grows up to the size of the stores, then stays: old content makes room for new. Near 1: runbook "
            "NativeLinkCASDiskFull.",
            (
                f"{_USED} / kubelet_volume_stats_capacity_bytes{{{CAS_CLAIMS}}}",
                "{{persistentvolumeclaim}}",
            ),
            top=1,
        ),
        graph(
            "Inodes in use",
            "percentunit",
            "Normal: below 0.95. Above: runbook NativeLinkCASInodesFull.",
            (
                f"kubelet_volume_stats_inodes_used{{{CAS_CLAIMS}}} / kubelet_volume_stats_inodes{{{CAS_CLAIMS}}}",
                "{{persistentvolumeclaim}}",
            ),
            top=1,
        ),
        number(
            "Imbalance of the volumes",
            "percentunit",
            "How much the fullest volume has above the mean. Normal: below 0.2. More: a pod has lost its volume, or "
            "was added.",
            (f"max({_USED}) / avg({_USED}) - 1", "above the mean"),
            warn=0.2,
            fail=0.5,
        ),
        number(
            "Content stays for",
            "s",
            "What the volumes hold, over what is written in the range. In a full cache, content that is not read is "
            "evicted after about this time: NativeLink reports no evictions. Less than a few days: use larger volumes.",
            (f"sum({_USED}) / sum(rate({_BYTES}{{{_WRITES}}}[$__range]))", "about"),
        ),
        graph(
            "Memory of the CAS",
            "bytes",
            "Normal: grows with the number of files, then stays below the limit. At the limit the pod is ended: raise "
            "nativelink_cas_resources.",
            (f'sum by (pod) (container_memory_working_set_bytes{{{CAS_PODS},container!=""}})', "{{pod}}"),
        ),
        graph(
            "Waits for a connection",
            "ops",
            "Calls between NativeLink's parts: queued had to wait for a free connection, immediate had "
            "not. Normal: the same relation as on the days before. More of them queued, with slow reads: "
            "add CAS pods.",
            (
                per_second("nativelink_connection_pool_acquisitions_total", OURS, "connection_result"),
                "{{connection_result}}",
            ),
        ),
        needs=FARM,
    )
