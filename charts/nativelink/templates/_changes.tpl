{{- /*
Changes that would lose the cache, or that the API server would refuse half-way: a list of lists of variable, problem and
remedy. Preflight compares with the committed tree. Helm has none, so this compares with the StatefulSets that run.
`helm template` and Argo CD show it none.
*/ -}}
{{- define "nativelink.changes" -}}
{{- $context := index .args 0 -}}
{{- $allowed := index .args 1 -}}
{{- $findings := list -}}
{{- $losses := dict "cas" "accept a cache flush" -}}
{{- if $context.redis.bundled -}}
  {{- $_ := set $losses "redis" "accept that the queue is lost and its builds start again" -}}
{{- end -}}
{{- range $component, $loss := $losses -}}
  {{- $running := lookup "apps/v1" "StatefulSet" $context.namespace (printf "nativelink-%s" $component) -}}
  {{- if $running -}}
    {{- $anew := printf "%s: delete the StatefulSet and its PersistentVolumeClaims, and upgrade (commands: docs/helm.md)" $loss -}}
    {{- $claim := (index $running.spec.volumeClaimTemplates 0).spec -}}
    {{- $old := $claim.resources.requests.storage -}}
    {{- $new := (index $context $component).volume_size -}}
    {{- $grown := sub (include "nativelink.bytes" $new) (include "nativelink.bytes" $old) -}}
    {{- $variable := printf "nativelink_%s_volume_size" $component -}}
    {{- if gt $grown 0 -}}
      {{- $problem := printf "%s of the running StatefulSet would become %s, and a StatefulSet cannot change it" $old $new -}}
      {{- $remedy := printf "grow each PersistentVolumeClaim to %s, delete the StatefulSet with --cascade=orphan, and upgrade (commands: docs/helm.md)" $new -}}
      {{- $findings = append $findings (list $variable $problem $remedy) -}}
    {{- else if lt $grown 0 -}}
      {{- $problem := printf "%s of the running StatefulSet would become %s, and a volume cannot shrink" $old $new -}}
      {{- $findings = append $findings (list $variable $problem $anew) -}}
    {{- end -}}
    {{- $old = $claim.storageClassName -}}
    {{- $new = (index $context $component).storage_class -}}
    {{- if ne $old $new -}}
      {{- $problem := printf "%s of the running StatefulSet would become %s, and a volume cannot change its class" $old $new -}}
      {{- $findings = append $findings (list (printf "nativelink_%s_storage_class" $component) $problem $anew) -}}
    {{- end -}}
    {{- $old = int $running.spec.replicas -}}
    {{- $new = int $context.cas.replicas -}}
    {{- /* Somebody has stopped a CAS that has no replicas, and it does not say how many shards there were. */ -}}
    {{- if and (eq $component "cas") $old (ne $old $new) (not (has "cas_replicas" $allowed)) -}}
      {{- $problem := printf "%d shards of the running StatefulSet would become %d, which moves the keys: cached results are lost, and the scheduler and all workers, which address the shards, are replaced" $old $new -}}
      {{- $findings = append $findings (list "nativelink_cas_replicas" $problem (printf "%s: add cas_replicas to nativelink_allow_changes for that time" $loss)) -}}
    {{- end -}}
  {{- end -}}
{{- end -}}
{{- $_ := set . "result" $findings -}}
{{- end -}}
