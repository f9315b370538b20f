{{- /*
Values that would lose data, break what runs, or open what should be closed, and that neither their schema nor the API
server refuses. The messages are preflight's, with the names of the chart. Preflight knows more: a case of
tests/preflight/reject that the chart takes says why.
*/ -}}
{{- define "nativelink.refuseFaults" -}}
{{- $context := . -}}
{{- $values := .values -}}
{{- $faults := list -}}

{{- /* A version whose configuration is unknown. A newer one gets the fields of the newest row. */ -}}
{{- if and (not (hasKey .constants.versions .row)) (semverCompare (printf "<%s" .constants.newest) .row) -}}
  {{- $faults = append $faults (printf "version: is %s, whose configuration is not known; write %s, or a version after %s" $values.version (keys .constants.versions | sortAlpha | join ", ") .constants.newest) -}}
{{- end -}}

{{- /* A full volume fails every upload. */ -}}
{{- if gt (add .cas.store_bytes .cas.ac_store_bytes) (div (mul .cas.volume_bytes 90) 100) -}}
  {{- $faults = append $faults (printf "cas.storeSize: is %v, which together with %v of cas.acStoreSize is more than 90%% of cas.volumeSize (%s); lower one of them, or raise cas.volumeSize" $values.cas.storeSize $values.cas.acStoreSize $values.cas.volumeSize) -}}
{{- end -}}

{{- /* Several queues, a Redis that loses actions, and one that does not exist. */ -}}
{{- if and .features.several_schedulers (not .features.redis) -}}
  {{- $faults = append $faults (printf "scheduler.replicas: is %v, but each scheduler in memory has its own queue; write 1, or set scheduler.backend to redis" $values.scheduler.replicas) -}}
{{- end -}}
{{- if and .features.redis (not .version.redis_backend) -}}
  {{- $faults = append $faults (printf "scheduler.backend: is redis, which NativeLink %s does not support; write memory, or a newer version" $values.version) -}}
{{- end -}}
{{- if and $values.cas.chunking (not .version.compression) -}}
  {{- $faults = append $faults (printf "cas.chunking: is true, which NativeLink %s does not support; remove it, or write a newer version" $values.version) -}}
{{- end -}}
{{- if and .features.bundled_redis $values.redis.address -}}
  {{- $faults = append $faults "redis.address: is set, but the bundled Redis is used; remove it, or set redis.provider to existing" -}}
{{- end -}}
{{- if and .features.redis (not .features.bundled_redis) (not $values.redis.address) -}}
  {{- $faults = append $faults "redis.address: is empty, but redis.provider is existing; write its host:port, or set redis.provider to bundled" -}}
{{- end -}}

{{- /* A bucket that cannot be found, and pods that cannot prove who they are. */ -}}
{{- $store := $values.objectStore -}}
{{- if not .features.object_store -}}
  {{- if .features.cas_autoscaled -}}
    {{- $faults = append $faults "cas.maxReplicas: is set, but with volumes another number of CAS pods moves keys; write 0, or set cas.store to object_store" -}}
  {{- end -}}
{{- else -}}
  {{- $stores := .version.object_stores -}}
  {{- if not (hasKey $stores $store.provider) -}}
    {{- $faults = append $faults (printf "objectStore.provider: is %s, which needs a newer NativeLink than %s; write one of %s" $store.provider $values.version (keys $stores | sortAlpha | reverse | join ", ")) -}}
  {{- else if not (has $store.identity (get $stores $store.provider)) -}}
    {{- $faults = append $faults (printf "objectStore.identity: is %s, which NativeLink %s does not have for %s; write one of %s" $store.identity $values.version $store.provider (get $stores $store.provider | join ", ")) -}}
  {{- end -}}
  {{- range $name, $need := .constants.store_needs -}}
    {{- $users := index $need 0 -}}
    {{- if and (has $store.provider $users) (not (get $store $name)) -}}
      {{- $faults = append $faults (printf "objectStore.%s: is empty, but objectStore.provider is %s; write %s" $name $store.provider (index $need 1)) -}}
    {{- end -}}
  {{- end -}}
  {{- if and (eq $store.identity "secret") (not $store.secretName) -}}
    {{- $faults = append $faults "objectStore.secretName: is empty, but objectStore.identity is secret; write its name" -}}
  {{- end -}}
  {{- if and (has $store.identity (list "irsa" "azure")) (not $store.principal) -}}
    {{- $faults = append $faults (printf "objectStore.principal: is empty, but objectStore.identity is %s; write %s" $store.identity (ternary "the ARN of the role" "the client ID" (eq $store.identity "irsa"))) -}}
  {{- end -}}
  {{- if not (or $store.caConfigMap (and (eq $store.provider "azure") (eq $store.identity "secret"))) -}}
    {{- $faults = append $faults "objectStore.caConfigMap: is empty, but the image of NativeLink has no certificate authorities, and does not start without any; write the name of a ConfigMap" -}}
  {{- end -}}
{{- end -}}

{{- $names := list -}}
{{- $offered := list -}}
{{- range $pool := .pools -}}
  {{- $at := printf "workerPools[%s]" $pool.name -}}
  {{- if has $pool.name $names -}}
    {{- $faults = append $faults (printf "%s.name: several pools have this name; rename the others" $at) -}}
  {{- end -}}
  {{- $names = append $names $pool.name -}}
  {{- $offered = concat $offered (keys $pool.platform_properties) -}}

  {{- /* The scheduler refuses a worker of undeclared properties, and one whose number is none. */ -}}
  {{- range $name, $texts := $pool.platform_properties -}}
    {{- $kind := get $context.scheduler.properties $name -}}
    {{- if not $kind -}}
      {{- $faults = append $faults (printf "%s.platformProperties.%s: the scheduler does not declare this property; declare it in scheduler.platformProperties" $at $name) -}}
    {{- else if and (eq $kind "minimum") (not (regexMatch "^([0-9]+,)*[0-9]+$" (join "," $texts))) -}}
      {{- $faults = append $faults (printf "%s.platformProperties.%s: is '%s', but the scheduler compares it as a number; write a whole number" $at $name (join "', '" $texts)) -}}
    {{- end -}}
  {{- end -}}
  {{- if and $pool.persistent_workers $pool.isolated -}}
    {{- $faults = append $faults (printf "%s.persistentWorkers: is true, but a process that serves several actions cannot have the user of one (isolation: users); set the pool's isolation to none, or remove persistentWorkers" $at) -}}
  {{- end -}}

  {{- /* A worker whose scratch is full fails its actions, and one above its limit is evicted with them. */ -}}
  {{- if gt (add (mul $context.constants.copies $pool.store_bytes) (max 1073741824 (div $pool.scratch_bytes 10))) $pool.scratch_bytes -}}
    {{- $faults = append $faults (printf "%s.scratchSize: is %s, but needs room for the fast store twice (%v), because executable inputs are stored twice, and a tenth or 1Gi for running actions; raise it, or lower fastStoreSize" $at $pool.scratch_size $pool.fast_store_size) -}}
  {{- end -}}
  {{- $limit := get $pool.resources.limits "ephemeral-storage" -}}
  {{- if and (not $pool.scratch_storage_class) (lt (include "nativelink.bytes" $limit | int64) $pool.scratch_bytes) -}}
    {{- $faults = append $faults (printf "%s.resources.limits.ephemeral-storage: is %v, which is less than scratchSize (%s), so a worker is evicted before its scratch is full; raise it, or lower scratchSize" $at $limit $pool.scratch_size) -}}
  {{- end -}}
  {{- if and $pool.schedule (ne $pool.scaling "keda") -}}
    {{- $faults = append $faults (printf "%s.schedule: is set, but the pool does not scale with keda; remove it, or set scaling to keda" $at) -}}
  {{- end -}}
  {{- range $index, $time := $pool.schedule -}}
    {{- if eq $time.start $time.end -}}
      {{- $faults = append $faults (printf "%s.schedule[%d].end: is the same as start; write when the time ends" $at $index) -}}
    {{- end -}}
    {{- $least := int64 $pool.min_replicas -}}
    {{- $most := int64 $pool.max_replicas -}}
    {{- if or (le (int64 $time.replicas) $least) (gt (int64 $time.replicas) $most) -}}
      {{- $faults = append $faults (printf "%s.schedule[%d].replicas: is %v, but the pool has more than %d and at most %d by a schedule; write a number between, or change minReplicas or maxReplicas" $at $index $time.replicas $least $most) -}}
    {{- end -}}
  {{- end -}}
  {{- if and (ne $pool.scaling "none") (not $pool.query) (not $context.features.redis) (not (has "scheduler" $values.metrics.senders)) -}}
    {{- $faults = append $faults (printf "metrics.senders: lacks scheduler, so %s could not follow the demand of a scheduler in memory; add scheduler, or set scaling to none, or scheduler.backend to redis" $pool.name) -}}
  {{- end -}}
{{- end -}}
{{- range $name, $kind := $values.scheduler.platformProperties -}}
  {{- if and (has $kind (list "minimum" "priority")) (not (has $name $offered)) -}}
    {{- $faults = append $faults (printf "scheduler.platformProperties.%s: is %s, but no pool offers it: an action that asks for it would never run, without an error; add it to the platformProperties of a pool, or write ignore" $name $kind) -}}
  {{- end -}}
{{- end -}}

{{- /* What should be closed. */ -}}
{{- range $at, $name := dict "the namespace of the release" .namespace "workersNamespace" $values.workersNamespace -}}
  {{- range $owner, $taken := dict "keda.namespace" $values.keda.namespace "ingress.namespace" $context.ingress_namespace "gitops.namespace" $context.engine_namespace "Kubernetes" (regexFind "^(default|kube-system|kube-public)$" $name) -}}
    {{- if eq $name $taken -}}
      {{- $faults = append $faults (printf "%s: is %s, which %s uses; choose a namespace that nothing else uses" $at $name $owner) -}}
    {{- end -}}
  {{- end -}}
{{- end -}}
{{- if eq .namespace $values.workersNamespace -}}
  {{- $faults = append $faults (printf "workersNamespace: is %s, which is also the namespace of the release; choose another one, because workers run the commands of clients" .namespace) -}}
{{- end -}}
{{- if $values.edge.clientCaSecret -}}
  {{- if not .features.envoy_gateway -}}
    {{- $faults = append $faults "edge.clientCaSecret: is set, but only a Gateway of the ingress.provider envoy-gateway asks clients for certificates; remove it, and configure your controller to ask for certificates" -}}
  {{- else if not .features.edge_tls -}}
    {{- $faults = append $faults "edge.clientCaSecret: is set, but clients present certificates only over TLS; set edge.tlsSecret to the name of a TLS Secret" -}}
  {{- end -}}
{{- end -}}
{{- $edge := $values.edge -}}
{{- $closed := and .features.edge_tls (or (not (empty $edge.clientCaSecret)) (not (empty $edge.access))) -}}
{{- $everyone := "so everyone who reaches the edge could use the cache and run commands" -}}
{{- if ne $edge.kind "none" -}}
  {{- if and $closed (trim $edge.open) -}}
    {{- $faults = append $faults "edge.open: is set, but the edge is not open; remove it" -}}
  {{- else if not (or $closed (trim $edge.open)) -}}
    {{- if .features.edge_tls -}}
      {{- $faults = append $faults (printf "edge.clientCaSecret: is empty, and edge.access too, %s; write the name of a Secret with the CA of your clients' certificates, or say in edge.open why this edge may be open" $everyone) -}}
    {{- else -}}
      {{- $faults = append $faults (printf "edge.tlsSecret: is empty, so calls are not encrypted, %s; write the name of a TLS Secret, or say in edge.open why this edge may be open" $everyone) -}}
    {{- end -}}
  {{- end -}}
{{- end -}}
{{- if and $edge.access (not .features.envoy_gateway) -}}
  {{- $faults = append $faults "edge.access: is set, but only a Gateway of the ingress.provider envoy-gateway tells who calls; remove it, and let your controller decide (docs/edge.md)" -}}
{{- else if and $edge.access (not .features.edge_tls) -}}
  {{- $faults = append $faults "edge.access: is set, but without TLS everyone on the network path could read and use an identity; set edge.tlsSecret to the name of a TLS Secret" -}}
{{- end -}}
{{- $issuers := list -}}
{{- range $edge.tokenIssuers -}}
  {{- if has .name $issuers -}}
    {{- $faults = append $faults (printf "edge.tokenIssuers[%s].name: several issuers have this name; rename the others" .name) -}}
  {{- end -}}
  {{- $issuers = append $issuers .name -}}
{{- end -}}
{{- range $index, $entry := $edge.access -}}
  {{- $at := printf "edge.access[%d]" $index -}}
  {{- if ne (len (list $entry.certificate $entry.issuer $entry.keys | compact)) 1 -}}
    {{- $faults = append $faults (printf "%s: an entry has one identity; write one of certificate, issuer and keys, and an entry for each further identity" $at) -}}
  {{- end -}}
  {{- if and $entry.certificate (not $edge.clientCaSecret) -}}
    {{- $faults = append $faults (printf "%s.certificate: is set, but edge.clientCaSecret is empty, so no certificate is asked for; write the name of a Secret with the CA of your clients' certificates" $at) -}}
  {{- end -}}
  {{- if and $entry.issuer (not (has $entry.issuer $issuers)) -}}
    {{- $faults = append $faults (printf "%s.issuer: is %s, which is not in edge.tokenIssuers; add it there" $at $entry.issuer) -}}
  {{- end -}}
  {{- if and $entry.issuer (not $entry.claims) -}}
    {{- $faults = append $faults (printf "%s.claims: is empty, so every token of the issuer would do, also one that it gave to a stranger; write a claim that only your clients have, such as repository" $at) -}}
  {{- end -}}
{{- end -}}
{{- $day := $values.mutualTls.expires -}}
{{- if and .features.mutual_tls (not $day) -}}
  {{- $faults = append $faults "mutualTls.expires: is empty, but mutualTls.secret is set; write the day on which its certificates end" -}}
{{- end -}}
{{- if and $day (le (include "nativelink.midnight" $day | int64) 0) -}}
  {{- $faults = append $faults (printf "mutualTls.expires: '%s' is not a valid day; write a day such as 2027-01-31" $day) -}}
{{- end -}}
{{- range $key := list "expires" "issuer" -}}
  {{- if and (get $values.mutualTls $key) (not $context.features.mutual_tls) -}}
    {{- $faults = append $faults (printf "mutualTls.%s: is set, but mutualTls.secret is empty; remove it, or write the name of the Secrets" $key) -}}
  {{- end -}}
{{- end -}}
{{- range $number, $rule := $values.worker.egress -}}
  {{- range $index, $peer := $rule.to -}}
    {{- range $address, $link := $context.constants.metadata -}}
      {{- $block := $peer.ipBlock | default (dict "cidr" "0.0.0.0/32") -}}
      {{- $open := include "nativelink.inRange" (list $address $block.cidr) -}}
      {{- range $block.except -}}
        {{- $open = ternary "" $open (eq (include "nativelink.inRange" (list $address .)) "in") -}}
      {{- end -}}
      {{- if $open -}}
        {{- $faults = append $faults (printf "worker.egress[%d].to[%d].ipBlock: contains %s, where a node's credentials are; add except: [%s], or write a range without the address" $number $index $address $link) -}}
      {{- end -}}
    {{- end -}}
  {{- end -}}
{{- end -}}

{{- /* An edge that no controller serves any more. */ -}}
{{- $serving := list -}}
{{- range $name, $controller := $context.constants.ingress -}}
  {{- if has $values.edge.kind $controller.serves -}}{{- $serving = append $serving $name -}}{{- end -}}
{{- end -}}
{{- if and (ne $values.edge.kind "none") (not (has $values.ingress.provider $serving)) -}}
  {{- $faults = append $faults (printf "edge.kind: is %s, which the ingress.provider %s does not serve; set ingress.provider to %s, or edge.kind to something else" $values.edge.kind $values.ingress.provider (join " or " $serving)) -}}
{{- end -}}
{{- if $faults -}}
  {{- fail (printf "the values have faults:\n%s" (join "\n" $faults)) -}}
{{- end -}}
{{- end -}}

{{- /* `in` if a CIDR range contains an address, which then begins with the bits of the range. */ -}}
{{- define "nativelink.inRange" -}}
{{- $parts := splitList "/" (index . 1) -}}
{{- $range := include "nativelink.bits" (first $parts) | trunc (last $parts | int) -}}
{{- if and (eq (contains ":" (index . 0)) (contains ":" (index . 1))) (hasPrefix $range (include "nativelink.bits" (index . 0))) -}}in{{- end -}}
{{- end -}}

{{- /* The bits of an IP address, as text. */ -}}
{{- define "nativelink.bits" -}}
{{- if contains ":" . -}}
  {{- $zeros := repeat (sub 8 (splitList ":" . | compact | len) | int) "0:" -}}
  {{- range replace "::" (printf ":%s" $zeros) . | splitList ":" | compact -}}
    {{- printf "%016b" (printf "0x%s" . | int) -}}
  {{- end -}}
{{- else -}}
  {{- range splitList "." . -}}
    {{- printf "%08b" (int .) -}}
  {{- end -}}
{{- end -}}
{{- end -}}
