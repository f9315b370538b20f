{{- /*
Changes that would lose the cache, or that the API server would refuse half-way. Preflight compares with the committed
tree. Helm has none, so this compares with the StatefulSets that run. `helm template` and Argo CD show it none.
*/ -}}
{{- define "nativelink.refuseChanges" -}}
{{- $context := . -}}
{{- $faults := list -}}
{{- $losses := dict "cas" "accept a cache flush" -}}
{{- if .features.bundled_redis -}}
  {{- $_ := set $losses "redis" "accept that the queue is lost and its builds start again" -}}
{{- end -}}
{{- range $component, $loss := $losses -}}
  {{- $running := lookup "apps/v1" "StatefulSet" $context.namespace (printf "nativelink-%s" $component) -}}
  {{- if $running -}}
    {{- $anew := printf "%s: delete the StatefulSet and its PersistentVolumeClaims, and upgrade (commands: docs/helm.md)" $loss -}}
    {{- $claim := (index $running.spec.volumeClaimTemplates 0).spec -}}
    {{- $old := $claim.resources.requests.storage -}}
    {{- $new := (get $context.values $component).volumeSize -}}
    {{- $grown := sub (include "nativelink.bytes" $new) (include "nativelink.bytes" $old) -}}
    {{- if gt $grown 0 -}}
      {{- $faults = append $faults (printf "%s.volumeSize: %s of the running StatefulSet would become %s, and a StatefulSet cannot change it; grow each PersistentVolumeClaim to %s, delete the StatefulSet with --cascade=orphan, and upgrade (commands: docs/helm.md)" $component $old $new $new) -}}
    {{- else if lt $grown 0 -}}
      {{- $faults = append $faults (printf "%s.volumeSize: %s of the running StatefulSet would become %s, and a volume cannot shrink; %s" $component $old $new $anew) -}}
    {{- end -}}
    {{- $old = $claim.storageClassName -}}
    {{- $new = (get $context $component).storage_class -}}
    {{- if ne $old $new -}}
      {{- $faults = append $faults (printf "%s.storageClass: %s of the running StatefulSet would become %s, and a volume cannot change its class; %s" $component $old $new $anew) -}}
    {{- end -}}
    {{- $old = get ($running.metadata.annotations | default dict) "nativelink-gitops/store" | default "volumes" -}}
    {{- $new = $context.values.cas.store -}}
    {{- $moved := and (eq $component "cas") (ne $old $new) -}}
    {{- if and $moved (not (has "cas_store" $context.values.allowChanges)) -}}
      {{- $faults = append $faults (printf "cas.store: %s of the running StatefulSet would become %s, which is still empty; copy it first (docs/object-store.md), or %s: add cas_store to allowChanges for that time" $old $new $loss) -}}
    {{- end -}}
    {{- $shared := or $moved $context.features.object_store -}}
    {{- $old = int $running.spec.replicas -}}
    {{- $new = int $context.values.cas.replicas -}}
    {{- /* A CAS that was scaled to zero does not say how many shards it had. */ -}}
    {{- if and (eq $component "cas") (not $shared) $old (ne $old $new) (not (has "cas_replicas" $context.values.allowChanges)) -}}
      {{- $faults = append $faults (printf "cas.replicas: %d shards of the running StatefulSet would become %d, which moves the keys: cached results are lost, and the scheduler and all workers, which address the shards, are replaced; %s: add cas_replicas to allowChanges for that time" $old $new $loss) -}}
    {{- end -}}
  {{- end -}}
{{- end -}}
{{- if $faults -}}
  {{- fail (printf "this would break what runs:\n%s" (join "\n" $faults)) -}}
{{- end -}}
{{- end -}}
