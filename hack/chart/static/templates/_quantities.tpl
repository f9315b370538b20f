{{- /* Quantities as users write them, which the schema of the values has checked, as numbers. */ -}}

{{- /* A text as it is, and a number or a truth value as YAML shows it. */ -}}
{{- define "nativelink.text" -}}
{{- if kindIs "string" . -}}{{- . -}}{{- else -}}{{- toJson . -}}{{- end -}}
{{- end -}}

{{- /* Bytes of a size such as 200Gi, 1.5T, 1e9 or a number, rounded up. */ -}}
{{- define "nativelink.bytes" -}}
{{- $text := include "nativelink.text" . -}}
{{- $number := regexFind "^[0-9.]+" $text -}}
{{- $unit := trimPrefix $number $text -}}
{{- $factor := 1 -}}
{{- if regexMatch "^[eE][0-9]+$" $unit -}}
  {{- range until (substr 1 -1 $unit | int) -}}
    {{- $factor = mul $factor 10 -}}
  {{- end -}}
{{- else if $unit -}}
  {{- range until (add 1 (index (dict "k" 0 "K" 0 "M" 1 "G" 2 "T" 3 "P" 4 "E" 5) (substr 0 1 $unit)) | int) -}}
    {{- $factor = mul $factor (ternary 1024 1000 (hasSuffix "i" $unit)) -}}
  {{- end -}}
{{- end -}}
{{- if contains "." $number -}}
  {{- mulf $number $factor | ceil | int64 -}}
{{- else -}}
  {{- mul $number $factor -}}
{{- end -}}
{{- end -}}

{{- /* Thousandths of a CPU of an amount such as 500m, 4 or 0.5. */ -}}
{{- define "nativelink.cpu" -}}
{{- $text := include "nativelink.text" . -}}
{{- mulf (trimSuffix "m" $text) (ternary 1 1000 (hasSuffix "m" $text)) | int64 -}}
{{- end -}}

{{- /* Seconds of a duration such as 1h30m, or of a number of seconds. */ -}}
{{- define "nativelink.seconds" -}}
{{- $text := include "nativelink.text" . -}}
{{- $seconds := regexFind "^[0-9]+$" $text | int64 -}}
{{- range $part := regexFindAll "[0-9]+[dhms]" $text -1 -}}
  {{- $unit := index (dict "d" 86400 "h" 3600 "m" 60 "s" 1) (regexFind "[dhms]" $part) -}}
  {{- $seconds = add $seconds (mul (regexFind "[0-9]+" $part) $unit) -}}
{{- end -}}
{{- $seconds -}}
{{- end -}}

{{- /* Seconds from 1970 to the beginning of a day, in UTC; before 1970 where there is no such day. */ -}}
{{- define "nativelink.midnight" -}}
{{- if . -}}
  {{- printf "%sZ" . | toDate "2006-01-02Z07:00" | unixEpoch -}}
{{- else -}}
  0
{{- end -}}
{{- end -}}

{{- /* Bytes of a share, a percentage or a size; a list of the share and of the bytes of the whole. */ -}}
{{- define "nativelink.part" -}}
{{- $share := include "nativelink.text" (index . 0) -}}
{{- if hasSuffix "%" $share -}}
  {{- divf (mulf (trimSuffix "%" $share) (index . 1)) 100 | floor | int64 -}}
{{- else -}}
  {{- include "nativelink.bytes" $share -}}
{{- end -}}
{{- end -}}
