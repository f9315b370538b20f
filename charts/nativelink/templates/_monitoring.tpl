{{- /* What the workloads report, and what Prometheus alerts on and scrapes (files/monitoring.yaml). */ -}}

{{- define "nativelink.telemetry" -}}
{{- $context := . -}}
{{- $reporting := .constants.senders -}}
{{- /* Workers have a collector of their own: whatever an action sends to it, the demand goes on. */ -}}
{{- $collectors := list -}}
{{- range $component := list "collector" "collector-workers" -}}
  {{- $senders := list -}}
  {{- range $sender := $context.senders -}}
    {{- if eq $component (ternary "collector-workers" "collector" (eq $sender "worker")) -}}
      {{- $senders = append $senders (dict "name" $sender "port" (get $reporting $sender)) -}}
    {{- end -}}
  {{- end -}}
  {{- $name := ternary "reported" "workers" (eq $component "collector") -}}
  {{- $ports := list (dict "name" $name "port" $context.constants.ports.reported) -}}
  {{- if and (eq $component "collector") $context.features.collected_demand -}}
    {{- $ports = prepend $ports (dict "name" "metrics" "port" $context.constants.ports.metrics) -}}
  {{- end -}}
  {{- if eq $component "collector" -}}
    {{- $_ := set $context "collected" $senders -}}
  {{- end -}}
  {{- if $senders -}}
    {{- $collectors = append $collectors (dict "component" $component "senders" $senders "ports" $ports) -}}
  {{- end -}}
{{- end -}}
{{- $_ := set . "collectors" $collectors -}}
{{- $_ := set . "demand_expiration" (max 5 (mul .values.metrics.interval 3)) -}}

{{- $url := trimSuffix "/" .values.traces.endpoint -}}
{{- $address := regexReplaceAll "^https?://" $url "" -}}
{{- $traces := include "nativelink.peer" (list $address $reporting.scheduler) | fromJson -}}
{{- $_ := set $traces "endpoint" $address -}}
{{- $_ := set $traces "ratio" (printf "%.6g" (mulf .values.traces.percent 0.01)) -}}
{{- $_ := set $traces "insecure" (hasPrefix "http://" $url) -}}
{{- $_ := set . "traces" $traces -}}
{{- end -}}

{{- define "nativelink.prometheus" -}}
{{- $context := . -}}
{{- template "nativelink.names" . -}}
{{- $groups := list -}}
{{- $entry := dict "cluster" .cluster "namespace" .namespace -}}
{{- if ne .values.prometheus.provider "none" -}}
  {{- range $group, $all := .monitoring.groups -}}
    {{- $rules := list -}}
    {{- range $all -}}
      {{- if include "nativelink.wanted" (list $context .) -}}
        {{- $filled := include "nativelink.filled" (list $context .) | fromJson -}}
        {{- $url := printf "%s/%s.md" (regexReplaceAll "/+$" $context.values.runbookUrl "") .alert -}}
        {{- $rule := pick $filled "alert" "expr" "for" -}}
        {{- $_ := set $rule "labels" (merge (pick . "severity") $entry) -}}
        {{- $_ := set $rule "annotations" (merge (dict "runbook_url" $url) (pick $filled "summary" "description")) -}}
        {{- $rules = append $rules $rule -}}
      {{- end -}}
    {{- end -}}
    {{- if $rules -}}
      {{- $groups = append $groups (dict "name" $group "rules" $rules) -}}
    {{- end -}}
  {{- end -}}
{{- end -}}
{{- $targets := list -}}
{{- range .monitoring.targets -}}
  {{- if include "nativelink.wanted" (list $context .) -}}
    {{- $targets = append $targets (set (deepCopy .) "port" (get $context.constants.ports .port)) -}}
  {{- end -}}
{{- end -}}
{{- $scrapes := list -}}
{{- range .monitoring.scrapes -}}
  {{- if and (has .source $context.values.prometheus.scrapes) (include "nativelink.wanted" (list $context .)) -}}
    {{- $scrape := include "nativelink.filled" (list $context .) | fromJson -}}
    {{- $selector := list -}}
    {{- range $key, $value := $scrape.labels -}}
      {{- $selector = append $selector (printf "%s=%s" $key $value) -}}
    {{- end -}}
    {{- if $scrape.key -}}
      {{- $selector = append $selector (printf "%s in (%s)" $scrape.key (join "," $scrape.one_of)) -}}
    {{- end -}}
    {{- $scrapes = append $scrapes (set $scrape "selector" (join "," $selector)) -}}
  {{- end -}}
{{- end -}}
{{- $address := printf "http://nativelink-prometheus.%s.svc:%v" .namespace .constants.ports.prometheus -}}
{{- $_ := set . "prometheus" (dict
  "address" (.values.prometheus.address | default $address)
  "labels" (include "nativelink.over" (list .labels.prometheus .values.prometheus.labels) | fromJson)
  "alerts" $groups
  "targets" $targets
  "scrapes" $scrapes
  "token" (not (empty .values.prometheus.scrapes))
  "kubelet_paths" (ternary (list "/metrics" "/metrics/cadvisor") list (has "cluster" .values.prometheus.scrapes))
  "kubelet_series" .names.kubelet_series
) -}}
{{- end -}}

{{- /* What %(name)s stands for. */ -}}
{{- define "nativelink.names" -}}
{{- $context := . -}}
{{- $pools := list -}}
{{- $scaled := list -}}
{{- range .pools -}}
  {{- $pools = append $pools .name -}}
  {{- if ne .scaling "none" -}}
    {{- $scaled = append $scaled .name -}}
  {{- end -}}
{{- end -}}
{{- $day := .values.mutualTls.expires -}}
{{- $_ := set . "names" (dict
  "cluster" .cluster
  "namespace" .namespace
  "workers_namespace" .values.workersNamespace
  "engine_namespace" .engine_namespace
  "ingress_namespace" .ingress_namespace
  "keda_namespace" .values.keda.namespace
  "states_namespace" .values.kubeStateMetricsNamespace
  "pools" (join "|" $pools)
  "scaled_pools" (join "|" $scaled)
  "first_pool" (first $pools)
  "expires" $day
  "expires_at" (include "nativelink.midnight" $day)
  "flux_window" (max 600 (mul 5 (include "nativelink.seconds" .values.gitops.interval)) | toString)
  "store_bytes" (.cas.store.max_bytes | int64 | toString)
  "store_files" (.cas.store.max_count | int64 | toString)
) -}}
{{- range $name, $text := include "nativelink.filled" (list . .monitoring.selectors) | fromJson -}}
  {{- $_ := set $context.names $name $text -}}
{{- end -}}
{{- $sources := list -}}
{{- range .monitoring.sources -}}
  {{- if include "nativelink.wanted" (list $context .) -}}
    {{- $series := (include "nativelink.filled" (list $context .) | fromJson).series -}}
    {{- $sources = append $sources (printf "label_replace(absent(%s), \"source\", %q, \"\", \"\")" $series .name) -}}
  {{- end -}}
{{- end -}}
{{- $_ := set .names "lost_sources" (join " or " $sources) -}}
{{- $_ := set .features "sources" (not (empty $sources)) -}}
{{- end -}}

{{- /* A text if the cluster has the features that an item of the data needs. */ -}}
{{- define "nativelink.wanted" -}}
{{- $features := (index . 0).features -}}
{{- $wanted := true -}}
{{- range (index . 1).needs -}}
  {{- $wanted = and $wanted (get $features .) -}}
{{- end -}}
{{- if $wanted -}}wanted{{- end -}}
{{- end -}}

{{- /* A value of the data with the cluster's names in its texts, as JSON. */ -}}
{{- define "nativelink.filled" -}}
{{- $text := index . 1 | toRawJson -}}
{{- range $name, $value := (index . 0).names -}}
  {{- $text = replace (printf "%%(%s)s" $name) (toRawJson $value | trimPrefix "\"" | trimSuffix "\"") $text -}}
{{- end -}}
{{- $text -}}
{{- end -}}
