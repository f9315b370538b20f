{{- /*
What the values do not say as they stand. Every template calls "nativelink.prepare" first, which computes it once for all
of them and keeps it in the root's `nativelink`, where templates read `$context.cas.store`. The names are those of
plugins/plugin_utils/context, which computes the same for the rendered trees; tests/chart/test_parity.py compares both.

Go templates have no functions that return a dict. So each of these templates gets the context, a dict, and adds to it.
Helm makes a float of a number in a values file, so `int64` is written wherever a number is compared or shown.
*/ -}}
{{- define "nativelink.prepare" -}}
{{- if not (hasKey . "nativelink") -}}
  {{- $context := dict
    "values" .Values
    "namespace" .Release.Namespace
    "cluster" (.Values.cluster | default .Release.Name)
    "constants" (.Files.Get "files/constants.yaml" | fromYaml)
    "monitoring" (.Files.Get "files/monitoring.yaml" | fromYaml)
  -}}
  {{- template "nativelink.providers" $context -}}
  {{- template "nativelink.images" $context -}}
  {{- template "nativelink.worker" $context -}}
  {{- template "nativelink.features" $context -}}
  {{- template "nativelink.telemetry" $context -}}
  {{- template "nativelink.cas" $context -}}
  {{- template "nativelink.scheduler" $context -}}
  {{- template "nativelink.edge" $context -}}
  {{- template "nativelink.prometheus" $context -}}
  {{- template "nativelink.refuseFaults" $context -}}
  {{- template "nativelink.refuseChanges" $context -}}
  {{- template "nativelink.configMaps" (dict "context" $context "Values" .Values "Release" .Release) -}}
  {{- $_ := set . "nativelink" $context -}}
{{- end -}}
{{- end -}}

{{- /* Defaults that follow from a provider, the facts of the version, and the labels of each component. */ -}}
{{- define "nativelink.providers" -}}
{{- $context := . -}}
{{- $ingress := get .constants.ingress .values.ingress.provider -}}
{{- $engine := get .constants.gitops .values.gitops.provider | default dict -}}
{{- $_ := set . "ingress_class_name" (.values.ingress.className | default $ingress.class_name) -}}
{{- $_ := set . "ingress_namespace" (.values.ingress.namespace | default $ingress.namespace) -}}
{{- $_ := set . "engine_namespace" (.values.gitops.namespace | default $engine.namespace | default "") -}}
{{- $_ := set . "row" (regexFind "^v[0-9]+[.][0-9]+[.][0-9]+" .values.version) -}}
{{- $_ := set . "version" (get .constants.versions .row | default (get .constants.versions .constants.newest)) -}}
{{- $_ := set . "labels" dict -}}
{{- range $component := .constants.components -}}
  {{- $_ := set $context.labels $component (dict
    "app.kubernetes.io/name" "nativelink"
    "app.kubernetes.io/component" $component
    "app.kubernetes.io/instance" $context.cluster
    "app.kubernetes.io/part-of" "nativelink"
    "app.kubernetes.io/managed-by" "nativelink-gitops"
  ) -}}
{{- end -}}
{{- end -}}

{{- define "nativelink.images" -}}
{{- $_ := set . "images" (dict
  "nativelink" (include "nativelink.image" (list .values.image .values.version .values.imageDigest))
  "worker_init" (include "nativelink.image" (list .values.worker.initImage .values.version .values.worker.initImageDigest))
  "redis" (include "nativelink.image" (list .values.redis.image .values.redis.version .values.redis.imageDigest))
  "headroom" (include "nativelink.image" (list .values.headroom.image .values.headroom.version .values.headroom.imageDigest))
  "collector" (include "nativelink.image" (list .values.collector.image .values.collector.version .values.collector.imageDigest))
  "redis_exporter" (include "nativelink.image" (list .values.redisExporter.image .values.redisExporter.version .values.redisExporter.imageDigest))
  "prometheus" (include "nativelink.image" (list .values.prometheus.image .values.prometheus.version .values.prometheus.imageDigest))
) -}}
{{- end -}}

{{- define "nativelink.image" -}}
{{- index . 0 -}}:{{- index . 1 -}}{{- with index . 2 -}}@{{- . -}}{{- end -}}
{{- end -}}

{{- /* Workers -------------------------------------------------------------------------------------------------- */ -}}

{{- define "nativelink.worker" -}}
{{- $context := . -}}
{{- $upload := include "nativelink.seconds" .values.worker.uploadTimeout | int64 -}}
{{- $_ := set . "upload_timeout" $upload -}}
{{- $_ := set . "pools" list -}}
{{- range .values.workerPools -}}
  {{- $pool := deepCopy $context.constants.pool -}}
  {{- range $key, $value := . -}}
    {{- $_ := set $pool (snakecase $key) $value -}}
  {{- end -}}
  {{- template "nativelink.pool" (dict "context" $context "pool" $pool) -}}
  {{- $_ := set $context "pools" (append $context.pools $pool) -}}
{{- end -}}
{{- end -}}

{{- /* A pool has the keys of its values, with their defaults, and more. */ -}}
{{- define "nativelink.pool" -}}
{{- $context := .context -}}
{{- $pool := .pool -}}
{{- $values := .context.values -}}
{{- $limits := $pool.resources.limits | default dict -}}
{{- $requests := $pool.resources.requests | default dict -}}
{{- $_ := set $pool "scaling" ($pool.scaling | default $values.scaling) -}}
{{- $_ := set $pool "isolated" (eq ($pool.isolation | default $values.worker.isolation) "users") -}}
{{- $_ := set $pool "features" (dict
  "always" true
  "keda" (eq $pool.scaling "keda")
  "hpa" (eq $pool.scaling "hpa")
  "headroom" (gt (int64 $pool.headroom) 0)
  "prepull" $pool.prepull
) -}}
{{- $_ := set $pool "config_map" (dict
  "name" (printf "nativelink-worker-%s-config" $pool.name)
  "namespace" $values.workersNamespace
  "files" (list (printf "worker/%s/worker.json5" $pool.name) "worker/start.sh" "worker/precondition.sh" "worker/drain.sh")
) -}}
{{- $image := $pool.image | default $values.worker.image -}}
{{- $digest := $pool.image_digest | default (ternary $values.worker.imageDigest "" (empty $pool.image)) -}}
{{- $_ := set $pool "image" (ternary (printf "%s@%s" $image $digest) $image (not (empty $digest))) -}}

{{- /* As long as an action that starts just before the drain may take to the report of its result. */ -}}
{{- $_ := set $pool "longest" (include "nativelink.seconds" $pool.longest_action | int64) -}}
{{- $_ := set $pool "grace" (add $pool.longest $context.upload_timeout $context.constants.action_margin) -}}

{{- /* Whole CPUs, and memory that a worker has for sure. */ -}}
{{- $cpu := ternary $limits.cpu $requests.cpu (hasKey $limits "cpu") -}}
{{- $cpus := max 1 (div (include "nativelink.cpu" ($cpu | default 1)) 1000) -}}
{{- $memory := include "nativelink.bytes" ($requests.memory | default $limits.memory | default 0) | int64 -}}
{{- $_ := set $pool "slots" (int64 $pool.slots | default $cpus) -}}
{{- $_ := set $pool "target" (int64 $pool.target | default $pool.slots) -}}

{{- /* The platform properties that a pool offers without saying so, as far as the scheduler declares them. */ -}}
{{- $derived := dict "OSFamily" "Linux" "cpu_count" (toString $cpus) -}}
{{- if $memory -}}
  {{- $_ := set $derived "memory_kb" (div $memory 1024 | toString) -}}
{{- end -}}
{{- $properties := dict -}}
{{- range $name, $text := $derived -}}
  {{- if ne (get $values.scheduler.platformProperties $name | default "ignore") "ignore" -}}
    {{- $_ := set $properties $name (list $text) -}}
  {{- end -}}
{{- end -}}
{{- if $pool.persistent_workers -}}
  {{- $_ := set $properties "supports-workers" (list "1") -}}
{{- end -}}
{{- range $name, $value := $pool.platform_properties -}}
  {{- $texts := list -}}
  {{- range ternary $value (list $value) (kindIs "slice" $value) -}}
    {{- $texts = append $texts (include "nativelink.text" .) -}}
  {{- end -}}
  {{- $_ := set $properties $name $texts -}}
{{- end -}}
{{- $_ := set $pool "platform_properties" $properties -}}

{{- /* A file is kept twice where it is executable, so the store counts half of the inodes. */ -}}
{{- $scratch := include "nativelink.bytes" $pool.scratch_size | int64 -}}
{{- $store := include "nativelink.part" (list $pool.fast_store_size $scratch) | int64 -}}
{{- $files := div (include "nativelink.inodes" (list $context $scratch)) $context.constants.copies -}}
{{- $_ := set $pool "fast_store" (include "nativelink.eviction" (list $context $store $files) | fromJson) -}}
{{- $_ := set $pool "scratch_bytes" $scratch -}}
{{- $_ := set $pool "store_bytes" $store -}}

{{- /* The disk of a worker is requested, and its limit leaves room for the log and for what is beside the scratch. */ -}}
{{- $disk := "ephemeral-storage" -}}
{{- if not (hasKey $limits $disk) -}}
  {{- $own := ternary 0 $scratch (not (empty $pool.scratch_storage_class)) -}}
  {{- $requests = deepCopy $requests -}}
  {{- if and $own (not (hasKey $requests $disk)) -}}
    {{- $_ := set $requests $disk $pool.scratch_size -}}
  {{- end -}}
  {{- $most := max $own (include "nativelink.bytes" (get $requests $disk | default 0)) -}}
  {{- $beside := max (div (mul $most $context.constants.beside_percent) 100) (int64 $context.constants.beside_least) -}}
  {{- $limits = deepCopy $limits -}}
  {{- $_ := set $limits $disk (printf "%dGi" (div (add $most $beside 1073741823) 1073741824)) -}}
  {{- $_ := set $pool "resources" (dict "requests" $requests "limits" $limits) -}}
{{- end -}}

{{- $spot := get $context.constants.spot $pool.spot | default dict -}}
{{- $_ := set $pool "node_selector" (include "nativelink.over" (list ($spot.node_selector | default dict) $pool.node_selector) | fromJson) -}}
{{- $_ := set $pool "tolerations" (concat ($spot.tolerations | default list) $pool.tolerations) -}}
{{- /* An eviction drains too, as long as the evictor has the patience. */ -}}
{{- $patient := le $pool.grace (int64 $context.constants.eviction_patience) | toString -}}
{{- $evictable := dict "cluster-autoscaler.kubernetes.io/safe-to-evict" $patient -}}
{{- $_ := set $pool "annotations" (include "nativelink.over" (list $evictable $pool.annotations) | fromJson) -}}

{{- /* Without a metric KEDA keeps at least this many workers. A fallback of 0 would scale the pool to zero. */ -}}
{{- $_ := set $pool "fallback_replicas" (max 1 $pool.min_replicas) -}}
{{- $_ := set $pool "failure_threshold" (max 3 (div $context.constants.lost $pool.polling_interval)) -}}
{{- $_ := set $pool "behavior" (dict
  "scaleUp" (include "nativelink.over" (list $context.constants.scale_up $pool.scale_up) | fromJson)
  "scaleDown" (include "nativelink.over" (list $context.constants.scale_down $pool.scale_down) | fromJson)
) -}}
{{- end -}}

{{- /* Features ------------------------------------------------------------------------------------------------- */ -}}

{{- /* The conditions of the templates, by the names of context/features.py. */ -}}
{{- define "nativelink.features" -}}
{{- $values := .values -}}
{{- $redis := eq $values.scheduler.backend "redis" -}}
{{- $prometheus := $values.prometheus.provider -}}
{{- $keda := false -}}
{{- $autoscaled := false -}}
{{- $isolated := false -}}
{{- range .pools -}}
  {{- $keda = or $keda .features.keda -}}
  {{- $autoscaled = or $autoscaled (ne .scaling "none") -}}
  {{- $isolated = or $isolated .isolated -}}
{{- end -}}
{{- $demand := and $redis (or $autoscaled (ne $prometheus "none")) -}}

{{- /* The workloads that send metrics, if something reads them. On Redis scaling does not. */ -}}
{{- $read := or (ne $prometheus "none") $values.metrics.namespaces $values.traces.endpoint (and $autoscaled (not $redis)) -}}
{{- $senders := list -}}
{{- range $sender := list "scheduler" "cas" "worker" -}}
  {{- if and $read (has $sender $values.metrics.senders) -}}
    {{- $senders = append $senders $sender -}}
  {{- end -}}
{{- end -}}
{{- $_ := set . "senders" $senders -}}

{{- /* What of others is in Prometheus. An existing one is taken to scrape all that exists. */ -}}
{{- $envoy := and (eq $values.edge.kind "gateway") (eq $values.ingress.provider "envoy-gateway") -}}
{{- $scraped := dict -}}
{{- $series := dict -}}
{{- $engine := ne $values.gitops.provider "none" -}}
{{- range $source, $exists := dict "cluster" true "edge" $envoy "keda" $keda "gitops" $engine -}}
  {{- $named := and $exists (has $source $values.prometheus.scrapes) -}}
  {{- $_ := set $scraped $source $named -}}
  {{- $_ := set $series $source (or $named (and $exists (has $prometheus (list "operator" "annotations")))) -}}
{{- end -}}

{{- template "nativelink.access" . -}}

{{- $store := $values.objectStore -}}
{{- $shared := eq $values.cas.store "object_store" -}}
{{- $single := eq (max (int64 $values.cas.replicas) (int64 $values.cas.maxReplicas)) 1 -}}
{{- $_ := set . "features" (dict
  "always" true
  "several_schedulers" (gt (int64 $values.scheduler.replicas) 1)
  "redis" $redis
  "bundled_redis" (and $redis (eq $values.redis.provider "bundled"))
  "collector" (or (has "scheduler" $senders) (has "cas" $senders))
  "collected_demand" (and (not $redis) (has "scheduler" $senders))
  "cas_metrics" (has "cas" $senders)
  "scheduler_metrics" (has "scheduler" $senders)
  "worker_metrics" (has "worker" $senders)
  "demand" $demand
  "bundled_prometheus" (eq $prometheus "bundled")
  "bundled_prometheus_with_demand" (and (eq $prometheus "bundled") $demand)
  "prometheus_operator" (eq $prometheus "operator")
  "prometheus_operator_with_demand" (and (eq $prometheus "operator") $demand)
  "prometheus_operator_with_kubelets" (and (eq $prometheus "operator") (has "cluster" $values.prometheus.scrapes))
  "plain_alerts" (has $prometheus (list "bundled" "annotations"))
  "scrape_annotations" (eq $prometheus "annotations")
  "dashboards" $values.dashboards
  "gateway" (eq $values.edge.kind "gateway")
  "ingress" (eq $values.edge.kind "ingress")
  "envoy_gateway" $envoy
  "envoy_gateway_with_a_single_cas" (and $envoy $single)
  "envoy_gateway_with_several_cas" (and $envoy (not $single))
  "edge_access" (not (empty $values.edge.access))
  "edge_writers" .edge.writers
  "edge_keys_read" (not (empty .edge.keys.read))
  "edge_keys_execute" (not (empty .edge.keys.execute))
  "edge_keys_write" (not (empty .edge.keys.write))
  "autoscaled" $autoscaled
  "keda" $keda
  "isolated_workers" $isolated
  "client_writers" (or .edge.writers (not (empty $values.writerPeers)))
  "compression" (and $values.cas.compression .version.compression)
  "mutual_tls" (not (empty $values.mutualTls.secret))
  "certificates" (not (empty $values.mutualTls.issuer))
  "object_store" $shared
  "cas_evicts" (and (not $shared) (has "cas" $senders))
  "object_store_keys" (and $shared (eq $store.identity "secret"))
  "object_store_ca" (and $shared (not (empty $store.caConfigMap)))
  "s3" (and $shared (eq $store.provider "s3"))
  "azure_identity" (and $shared (eq $store.identity "azure"))
  "cas_autoscaled" (gt (int64 $values.cas.maxReplicas) 0)
  "scheduler_counts" (and .version.counts (has "scheduler" $senders))
  "cas_counts" (and .version.counts (has "cas" $senders))
  "demand_of_all" (and (not $redis) (has "scheduler" $senders) (has $prometheus (list "bundled" "operator")))
  "demand_by_pool" (and $redis (ne $prometheus "none"))
  "edge_tls" (not (empty $values.edge.tlsSecret))
  "edge_client_ca" (not (empty $values.edge.clientCaSecret))
  "argocd" (eq $values.gitops.provider "argocd")
  "flux" (eq $values.gitops.provider "flux")
  "cluster_scraped" $scraped.cluster
  "cluster_series" $series.cluster
  "edge_scraped" $scraped.edge
  "edge_series" $series.edge
  "gitops_scraped" $scraped.gitops
  "gitops_series" $series.gitops
  "keda_scraped" $scraped.keda
  "keda_series" $series.keda
) -}}
{{- end -}}

{{- /* Components ----------------------------------------------------------------------------------------------- */ -}}

{{- define "nativelink.cas" -}}
{{- $values := .values.cas -}}
{{- $volume := include "nativelink.bytes" $values.volumeSize | int64 -}}
{{- $store := include "nativelink.part" (list $values.storeSize $volume) | int64 -}}
{{- $ac := ternary 0 (include "nativelink.part" (list $values.acStoreSize $volume) | int64) .features.object_store -}}

{{- /* The stores share the volume's inodes and the pod's memory. Action results are small. Beyond a quarter of the
files they would take the place of the content that they name. */ -}}
{{- $files := include "nativelink.inodes" (list . $volume) | int64 -}}
{{- with ($values.resources.limits | default dict).memory -}}
  {{- $index := div (mul (include "nativelink.bytes" .) $.constants.index_percent) 100 -}}
  {{- $files = min $files (div $index $.constants.memory_a_file) -}}
{{- end -}}
{{- $results := min (div $ac .constants.bytes_a_block) (div $files 4) -}}
{{- $index := ternary (div (mul $store .constants.chunks_percent) 100) 0 $values.chunking -}}
{{- $entries := min (div $index .constants.bytes_a_block) (div (mul $files .constants.chunks_files_percent) 100) -}}
{{- $shards := list -}}
{{- range $number := until (int $values.replicas) -}}
  {{- $host := printf "nativelink-cas-%d.nativelink-cas-headless.%s.svc" $number $.namespace -}}
  {{- $shards = append $shards (dict "host" $host "weight" 1) -}}
{{- end -}}
{{- $buckets := dict -}}
{{- $account := dict -}}
{{- $metadata := list -}}
{{- if .features.object_store -}}
  {{- $store := .values.objectStore -}}
  {{- $shards = list (dict "host" (printf "nativelink-cas-internal.%s.svc" .namespace) "weight" 1) -}}
  {{- range $kind := list "cas" "ac" -}}
    {{- $_ := set $buckets $kind (include "nativelink.bucket" (list $ $kind) | fromJson) -}}
  {{- end -}}
  {{- if $store.principal -}}
    {{- $_ := set $account (get .constants.principals $store.identity) $store.principal -}}
  {{- end -}}
  {{- range get .constants.credentials $store.identity | default list -}}
    {{- $to := list (dict "ipBlock" (dict "cidr" (first .))) -}}
    {{- $metadata = append $metadata (dict "to" $to "ports" (list (dict "protocol" "TCP" "port" (last .)))) -}}
  {{- end -}}
{{- end -}}
{{- $_ := set . "cas" (dict
  "shards" $shards
  "buckets" $buckets
  "account" $account
  "metadata" $metadata
  "store" (include "nativelink.eviction" (list . (sub $store $index) (sub (sub $files $results) $entries)) | fromJson)
  "ac_store" (include "nativelink.eviction" (list . $ac $results) | fromJson)
  "chunks" (include "nativelink.eviction" (list . $index $entries) | fromJson)
  "volume_bytes" $volume
  "store_bytes" $store
  "ac_store_bytes" $ac
  "storage_class" $values.storageClass
  "served" (ternary "COUNTED_" "" .features.cas_metrics)
  "spread" (ternary "DoNotSchedule" "ScheduleAnyway" (eq $values.nodeSpread "required"))
  "startup_failures" (max 1 (div $values.startupTimeout .constants.startup_period))
) -}}
{{- end -}}

{{- /* NativeLink's experimental_cloud_object_store of content or of results, as JSON. */ -}}
{{- define "nativelink.bucket" -}}
{{- $context := index . 0 -}}
{{- $store := $context.values.objectStore -}}
{{- $bucket := dict
  "key_prefix" (printf "%s%s/" $store.prefix (index . 1))
  "consider_expired_after_s" (mul $store.expiryDays 86400)
  "insecure_allow_http" (hasPrefix "http://" $store.endpoint)
  "retry" $context.constants.bucket_retry
-}}
{{- if eq $store.provider "azure" -}}
  {{- $bucket = merge $bucket (dict "provider" "azure" "container" $store.bucket "account_name" $store.account) -}}
  {{- if eq $store.identity "secret" -}}
    {{- $_ := set $bucket "sas_url" "${AZURE_SAS_URL}" -}}
  {{- else if $store.endpoint -}}
    {{- $_ := set $bucket "endpoint" $store.endpoint -}}
  {{- end -}}
{{- else if eq $store.provider "gcs" -}}
  {{- $bucket = merge $bucket (dict "provider" "gcs" "bucket" $store.bucket "authentication_required" true) -}}
{{- else -}}
  {{- $bucket = merge $bucket (dict "provider" "aws" "bucket" $store.bucket "region" $store.region) -}}
{{- end -}}
{{- $bucket | toJson -}}
{{- end -}}

{{- /* Files that a volume of so many bytes has room for. */ -}}
{{- define "nativelink.inodes" -}}
{{- $constants := (index . 0).constants -}}
{{- div (div (mul (index . 1) $constants.inode_percent) 100) $constants.bytes_an_inode -}}
{{- end -}}

{{- /* NativeLink's eviction_policy of a store of so many bytes and files, as JSON. */ -}}
{{- define "nativelink.eviction" -}}
{{- $store := index . 1 | int64 -}}
{{- dict
  "max_bytes" $store
  "evict_bytes" (min (div $store 100) (index . 0).constants.evict_bytes)
  "max_count" (index . 2 | int64)
| toJson -}}
{{- end -}}

{{- define "nativelink.scheduler" -}}
{{- $context := . -}}
{{- $values := .values.scheduler -}}

{{- /* Always declared: v1.6.6 lets actions of undeclared properties run anywhere, also those that ask for a persistent
worker where no pool offers one. */ -}}
{{- $properties := include "nativelink.over" (list
  (dict "requires-worker-protocol" "ignore") $values.platformProperties (dict "supports-workers" "exact")) | fromJson -}}
{{- $executing := 0 -}}
{{- $offers := list -}}
{{- range $pool := .pools -}}
  {{- $executing = max $executing $pool.grace -}}
  {{- /* NativeLink's scheduler keeps the last of several values of a property. */ -}}
  {{- $offered := dict -}}
  {{- range $name, $texts := $pool.platform_properties -}}
    {{- if $texts -}}
      {{- $_ := set $offered $name (last $texts) -}}
    {{- end -}}
  {{- end -}}
  {{- $offers = append $offers (dict "name" $pool.name "slots" $pool.slots "properties" $offered) -}}
{{- end -}}

{{- /* Tolerations that let a pod's replacement start soon after its node is lost, unless the user states others. */ -}}
{{- $tolerations := $values.tolerations -}}
{{- $stated := list -}}
{{- range $values.tolerations -}}
  {{- $stated = append $stated .key -}}
{{- end -}}
{{- range .constants.only_pod_tolerations -}}
  {{- if not (has .key $stated) -}}
    {{- $tolerations = append $tolerations . -}}
  {{- end -}}
{{- end -}}
{{- $_ := set . "scheduler" (dict
  "properties" $properties
  "demand" (dict "pools" $offers "kinds" $properties)
  "executing_timeout" $executing
  "tolerations" $tolerations
) -}}

{{- $address := ternary (printf "nativelink-redis:%v" .constants.ports.redis) .values.redis.address .features.bundled_redis -}}
{{- $redis := include "nativelink.peer" (list $address .constants.ports.redis) | fromJson -}}
{{- $_ := set $redis "address" $address -}}
{{- $_ := set $redis "storage_class" (.values.redis.storageClass | default .values.cas.storageClass) -}}
{{- /* The rest is for connections, and for what changes while Redis rewrites its file. */ -}}
{{- $memory := (.values.redis.resources.limits | default dict).memory | default 0 -}}
{{- $filled := include "nativelink.part" (list .constants.redis_fills (include "nativelink.bytes" $memory)) -}}
{{- $_ := set $redis "max_memory" (int64 $filled) -}}
{{- $_ := set . "redis" $redis -}}
{{- end -}}

{{- /* Who may do what at the edge: rules for certificates and tokens, and the Secrets with API keys for each role. */ -}}
{{- define "nativelink.access" -}}
{{- $context := . -}}
{{- $edge := dict "rules" list "writers" false "certificates" "RequireAndVerify" -}}
{{- $_ := set $edge "keys" (dict "read" list "execute" list "write" list) -}}
{{- $includes := dict "read" (list "read") "execute" (list "read" "execute") "write" (list "read" "execute" "write") -}}
{{- range $entry := .values.edge.access -}}
  {{- if eq $entry.role "write" -}}
    {{- $_ := set $edge "writers" true -}}
  {{- end -}}
  {{- if not $entry.certificate -}}
    {{- $_ := set $edge "certificates" "VerifyIfGiven" -}}
  {{- end -}}
  {{- if $entry.keys -}}
    {{- range $role := get $includes $entry.role -}}
      {{- $_ := set $edge.keys $role (append (get $edge.keys $role) $entry.keys) -}}
    {{- end -}}
  {{- else -}}
    {{- $claims := list -}}
    {{- range $name, $value := $entry.claims -}}
      {{- $list := kindIs "slice" $value -}}
      {{- $claims = append $claims (dict "name" $name "valueType" (ternary "StringArray" "String" $list) "values" (ternary $value (list $value) $list)) -}}
    {{- end -}}
    {{- $kind := ternary "uri" "dns" (contains "://" ($entry.certificate | default "")) -}}
    {{- $cel := printf "connection.%s_san_peer_certificate == '%s'" $kind ($entry.certificate | default "") -}}
    {{- $_ := set $edge "rules" (append $edge.rules (dict
      "path" (get $context.constants.role_paths $entry.role)
      "cel" (ternary $cel "" (not (empty $entry.certificate)))
      "issuer" ($entry.issuer | default "")
      "claims" $claims
    )) -}}
  {{- end -}}
{{- end -}}
{{- $_ := set . "edge" $edge -}}
{{- end -}}

{{- /* Peers of NetworkPolicies, and what the Gateway or the Ingress needs. */ -}}
{{- define "nativelink.edge" -}}
{{- $clients := list -}}
{{- if and (ne .values.edge.kind "none") .ingress_namespace -}}
  {{- $proxies := dict "namespaceSelector" (dict "matchLabels" (dict "kubernetes.io/metadata.name" .ingress_namespace)) -}}
  {{- if .features.envoy_gateway -}}
    {{- /* Proxies of other Gateways are in the same namespace. */ -}}
    {{- $_ := set $proxies "podSelector" (dict "matchLabels" (dict
      "gateway.envoyproxy.io/owning-gateway-name" "nativelink"
      "gateway.envoyproxy.io/owning-gateway-namespace" .namespace
    )) -}}
  {{- end -}}
  {{- $clients = list $proxies -}}
{{- end -}}
{{- $readers := list -}}
{{- range concat (ternary (list .values.keda.namespace) list .features.keda) .values.metrics.namespaces | uniq -}}
  {{- $readers = append $readers (dict "namespaceSelector" (dict "matchLabels" (dict "kubernetes.io/metadata.name" .))) -}}
{{- end -}}
{{- $writers := concat (ternary $clients list .edge.writers) .values.writerPeers -}}
{{- $_ := set . "peers" (dict "clients" (concat $clients .values.clientPeers) "writers" $writers "metrics" $readers) -}}
{{- end -}}

{{- /* Host, port, and the network of a host that is an IP address, as JSON; an address and a port for one without. */ -}}
{{- define "nativelink.peer" -}}
{{- $address := index . 0 -}}
{{- $port := splitList ":" $address | last -}}
{{- $host := trimSuffix (printf ":%s" $port) $address | trimPrefix "[" | trimSuffix "]" -}}
{{- $network := "" -}}
{{- if contains ":" $host -}}
  {{- $network = printf "%s/128" (lower $host) -}}
{{- else if regexMatch "^[0-9.]+$" $host -}}
  {{- $network = printf "%s/32" $host -}}
{{- end -}}
{{- dict "host" $host "network" $network "port" (ternary $port (index . 1) (regexMatch "^[0-9]+$" $port) | int64) | toJson -}}
{{- end -}}

{{- /* Dicts, of which the later ones win key by key, as JSON. Sprig's merge would mix their values too. */ -}}
{{- define "nativelink.over" -}}
{{- $found := dict -}}
{{- range $each := . -}}
  {{- range $key, $value := $each -}}
    {{- $_ := set $found $key $value -}}
  {{- end -}}
{{- end -}}
{{- toJson $found -}}
{{- end -}}

{{- /* ConfigMaps ----------------------------------------------------------------------------------------------- */ -}}

{{- /* Each with its `data`. As kustomize does in the tree: a changed configuration has a new name, which rolls its pods. */ -}}
{{- define "nativelink.configMaps" -}}
{{- $root := . -}}
{{- $context := .context -}}
{{- $_ := set $context "config_maps" dict -}}
{{- $_ := set $context "all_config_maps" list -}}
{{- range $component, $map := $context.constants.config_maps -}}
  {{- if get $context.features $map.needs -}}
    {{- $files := list -}}
    {{- range $path, $feature := $map.files -}}
      {{- if get $context.features $feature -}}
        {{- $files = append $files $path -}}
      {{- end -}}
    {{- end -}}
    {{- $config_map := dict "name" (printf "nativelink-%s-config" $component) "namespace" $context.namespace "files" $files -}}
    {{- $_ := set $context.config_maps $component $config_map -}}
    {{- template "nativelink.configMap" (merge (dict "config_map" $config_map) $root) -}}
  {{- end -}}
{{- end -}}
{{- range $pool := $context.pools -}}
  {{- template "nativelink.configMap" (merge (dict "config_map" $pool.config_map "pool" $pool) $root) -}}
{{- end -}}
{{- end -}}

{{- define "nativelink.configMap" -}}
{{- $arguments := . -}}
{{- $data := dict -}}
{{- range $path := .config_map.files -}}
  {{- $template := ternary "worker/pool/worker.json5" $path (hasSuffix "/worker.json5" $path) -}}
  {{- $_ := set $data (base $path) (include (printf "nativelink/%s" $template) $arguments) -}}
{{- end -}}
{{- /* kustomize's hash leaves the name out. */ -}}
{{- $content := dict "data" $data "kind" "ConfigMap" "name" "" | toJson -}}
{{- $letters := substr 0 10 (sha256sum $content) -}}
{{- range $digit, $letter := dict "0" "g" "1" "h" "3" "k" "a" "m" "e" "t" -}}
  {{- $letters = replace $digit $letter $letters -}}
{{- end -}}
{{- $_ := set .config_map "data" $data -}}
{{- $_ := set .config_map "name" (printf "%s-%s" .config_map.name $letters) -}}
{{- $_ := set .context "all_config_maps" (append .context.all_config_maps .config_map) -}}
{{- end -}}
