{{- /*
How the files in ConfigMaps are written, byte for byte as in the rendered trees (plugins/plugin_utils/filters.py). A
ConfigMap's name has a hash of its files, so pods stay when a farm moves between the chart and a tree. Objects use toYaml.
*/ -}}

{{- /* A text as a YAML scalar, in quotes only where it would be read as something else without them. */ -}}
{{- define "nativelink.quoted" -}}
{{- $plain := regexMatch "^(?:[A-Za-z/][A-Za-z0-9/._@-]*(?::[A-Za-z0-9/._@-]+)*|[0-9]+(?:m|[KMGTP]i))$" . -}}
{{- $reserved := list "y" "n" "yes" "no" "on" "off" "true" "false" "null" -}}
{{- if and $plain (not (has (lower .) $reserved)) -}}
  {{- . -}}
{{- else -}}
  {{- toRawJson . -}}
{{- end -}}
{{- end -}}

