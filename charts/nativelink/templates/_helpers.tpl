{{- /*
Every template calls this first. It puts into the root's `nativelink` what the trees' templates call their context, once
for all templates, and fails with all findings of the rules when the values are not valid.
*/ -}}
{{- define "nativelink.prepare" -}}
{{- if not (hasKey . "nativelink") -}}
  {{- $values := dict "args" (list .) -}}
  {{- template "nativelink.values" $values -}}
  {{- $findings := dict "args" (list $values.result) -}}
  {{- template "nativelink.findings" $findings -}}
  {{- template "nativelink.refuse" (list $values.result.cluster "the values have faults" $findings.result) -}}
  {{- $context := dict "args" (list $values.result) -}}
  {{- template "nativelink.context.template_context" $context -}}
  {{- $changes := dict "args" (list $context.result $values.result.nativelink_allow_changes) -}}
  {{- template "nativelink.changes" $changes -}}
  {{- template "nativelink.refuse" (list $values.result.cluster "this would break what runs" $changes.result) -}}
  {{- $_ := set . "nativelink" $context.result -}}
  {{- /* As kustomize does in the tree: a changed configuration has a new name, which rolls its pods. */ -}}
  {{- range $config_map := .nativelink.config_maps -}}
    {{- template "nativelink.named" (dict "config_map" $config_map "context" $context.result) -}}
  {{- end -}}
  {{- range $pool := .nativelink.pools -}}
    {{- template "nativelink.named" (dict "config_map" $pool.config_map "context" $context.result "pool" $pool) -}}
  {{- end -}}
{{- end -}}
{{- end -}}

{{- /* Fails with all findings, a list of lists of variable, problem and remedy, if there are any. */ -}}
{{- define "nativelink.refuse" -}}
{{- $cluster := index . 0 -}}
{{- $lines := list -}}
{{- range $finding := index . 2 -}}
  {{- $line := printf "%v: %v; %v" (index $finding 0) (index $finding 1) (index $finding 2) -}}
  {{- $lines = append $lines (printf "%s: %s" $cluster (include "nativelink.translated" $line)) -}}
{{- end -}}
{{- if $lines -}}
  {{- fail (printf "%s:\n%s" (index . 1) ($lines | sortAlpha | join "\n")) -}}
{{- end -}}
{{- end -}}

{{- /* Gives a ConfigMap its `data`, and its name the suffix that kustomize would give it. */ -}}
{{- define "nativelink.named" -}}
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
{{- end -}}
