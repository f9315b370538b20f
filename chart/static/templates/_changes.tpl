{{- /*
Changes that would lose the cache, or that the API server would refuse half-way: a list of lists of variable, problem and
remedy. Preflight compares with the committed tree. Helm has none, so this compares with the StatefulSets that run.
`helm template` and Argo CD show it none.
*/ -}}
{{- define "nativelink.changes" -}}
{{- $context := index .args 0 -}}
{{- $allowed := index .args 1 -}}
{{- $findings := list -}}
{{- $where := "of the running StatefulSet" -}}
{{- $losses := dict "cas" "accept a cache flush" -}}
{{- if $context.features.bundled_redis -}}
  {{- $_ := set $losses "redis" "accept that the queue is lost and its builds start again" -}}
{{- end -}}
{{- range $component, $loss := $losses -}}
  {{- $running := lookup "apps/v1" "StatefulSet" $context.nativelink_namespace (printf "nativelink-%s" $component) -}}
  {{- if $running -}}
    {{- $anew := printf "%s: delete the StatefulSet and its PersistentVolumeClaims, and upgrade (commands: docs/helm.md)" $loss -}}
    {{- $claim := (index $running.spec.volumeClaimTemplates 0).spec -}}
    {{- $old := $claim.resources.requests.storage -}}
    {{- $new := (index $context (printf "nativelink_%s_volume_size" $component)) -}}
    {{- $grown := sub (include "nativelink.bytes" $new) (include "nativelink.bytes" $old) -}}
    {{- if $grown -}}
      {{- $problem := dict "args" (list $where $old $new) -}}
      {{- template "nativelink.change_guard.other_size" $problem -}}
      {{- $grow := printf "grow each PersistentVolumeClaim to %s, delete the StatefulSet with --cascade=orphan, and upgrade (commands: docs/helm.md)" $new -}}
      {{- $remedy := ternary $grow $anew (gt $grown 0) -}}
      {{- $findings = append $findings (list (printf "nativelink_%s_volume_size" $component) $problem.result $remedy) -}}
    {{- end -}}
    {{- $old = $claim.storageClassName -}}
    {{- $new = (index $context $component).storage_class -}}
    {{- if ne $old $new -}}
      {{- $problem := dict "args" (list $where $old $new) -}}
      {{- template "nativelink.change_guard.other_class" $problem -}}
      {{- $findings = append $findings (list (printf "nativelink_%s_storage_class" $component) $problem.result $anew) -}}
    {{- end -}}
    {{- $old = int $running.spec.replicas -}}
    {{- $new = int $context.nativelink_cas_replicas -}}
    {{- /* Somebody has stopped a CAS that has no replicas, and it does not say how many shards there were. */ -}}
    {{- if and (eq $component "cas") $old (ne $old $new) (not (has "cas_replicas" $allowed)) -}}
      {{- $problem := dict "args" (list $where $old $new) -}}
      {{- template "nativelink.change_guard.other_shards" $problem -}}
      {{- $remedy := printf "%s: add cas_replicas to nativelink_allow_changes for that time" $loss -}}
      {{- $findings = append $findings (list "nativelink_cas_replicas" $problem.result $remedy) -}}
    {{- end -}}
  {{- end -}}
{{- end -}}
{{- $_ := set . "result" $findings -}}
{{- end -}}
