{{- /*
What the translated functions and templates call: filters that write YAML and JSON byte for byte as the rendered tree
has them, and conversions of quantities, which the schema of the values has checked. They are written by hand.
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

{{- define "nativelink.scalar" -}}
{{- if kindIs "string" . -}}
  {{- include "nativelink.quoted" . -}}
{{- else -}}
  {{- toRawJson . -}}
{{- end -}}
{{- end -}}

{{- /* A value as YAML in block style, without a newline at the end. */ -}}
{{- define "nativelink.yaml" -}}
{{- $lines := list -}}
{{- if and (kindIs "map" .) . -}}
  {{- range $key, $item := . -}}
    {{- $name := include "nativelink.scalar" $key -}}
    {{- if and (or (kindIs "map" $item) (kindIs "slice" $item)) $item -}}
      {{- $lines = append $lines (printf "%s:\n%s" $name (include "nativelink.yaml" $item | indent 2)) -}}
    {{- else if and (kindIs "string" $item) (gt (len (toString $item)) 100) (regexMatch "^[!-~]+( [!-~]+)*$" (toString $item)) -}}
      {{- $lines = append $lines (printf "%s: >-\n%s" $name (wrap 100 $item | indent 2)) -}}
    {{- else -}}
      {{- $lines = append $lines (printf "%s: %s" $name (include "nativelink.scalar" $item)) -}}
    {{- end -}}
  {{- end -}}
{{- else if and (kindIs "slice" .) . -}}
  {{- range $item := . -}}
    {{- $lines = append $lines (printf "- %s" (include "nativelink.yaml" $item | indent 2 | trim)) -}}
  {{- end -}}
{{- else -}}
  {{- $lines = append $lines (include "nativelink.scalar" .) -}}
{{- end -}}
{{- join "\n" $lines -}}
{{- end -}}

{{- /* A value as JSON on one line. */ -}}
{{- define "nativelink.json" -}}
{{- $items := list -}}
{{- if kindIs "map" . -}}
  {{- range $key, $item := . -}}
    {{- $items = append $items (printf "%s: %s" (toRawJson $key) (include "nativelink.json" $item)) -}}
  {{- end -}}
  {{- printf "{%s}" (join ", " $items) -}}
{{- else if kindIs "slice" . -}}
  {{- range $item := . -}}
    {{- $items = append $items (include "nativelink.json" $item) -}}
  {{- end -}}
  {{- printf "[%s]" (join ", " $items) -}}
{{- else -}}
  {{- toRawJson . -}}
{{- end -}}
{{- end -}}

{{- /* A value as indented JSON. */ -}}
{{- define "nativelink.prettyJson" -}}
{{- $items := list -}}
{{- if and (kindIs "map" .) . -}}
  {{- range $key, $item := . -}}
    {{- $items = append $items (printf "%s: %s" (toRawJson $key) (include "nativelink.prettyJson" $item) | indent 2) -}}
  {{- end -}}
  {{- printf "{\n%s\n}" (join ",\n" $items) -}}
{{- else if and (kindIs "slice" .) . -}}
  {{- range $item := . -}}
    {{- $items = append $items (include "nativelink.prettyJson" $item | indent 2) -}}
  {{- end -}}
  {{- printf "[\n%s\n]" (join ",\n" $items) -}}
{{- else -}}
  {{- toRawJson . -}}
{{- end -}}
{{- end -}}

{{- /* Bytes of a size such as 200Gi, 1.5T, 1e9 or a number, rounded up. */ -}}
{{- define "nativelink.bytes" -}}
{{- $number := regexFind "^[0-9.]+" (toString .) -}}
{{- $unit := trimPrefix $number (toString .) -}}
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
{{- if hasSuffix "m" (toString .) -}}
  {{- trimSuffix "m" . | float64 | int64 -}}
{{- else -}}
  {{- mulf . 1000 | int64 -}}
{{- end -}}
{{- end -}}

{{- /* Seconds of a duration such as 1h30m, or of a number of seconds. */ -}}
{{- define "nativelink.seconds" -}}
{{- $text := toString . -}}
{{- if regexMatch "^[0-9]+$" $text -}}
  {{- $text -}}
{{- else -}}
  {{- $seconds := 0 -}}
  {{- range $part := regexFindAll "[0-9]+[dhms]" $text -1 -}}
    {{- $unit := index (dict "d" 86400 "h" 3600 "m" 60 "s" 1) (regexFind "[dhms]" $part) -}}
    {{- $seconds = add $seconds (mul (regexFind "[0-9]+" $part) $unit) -}}
  {{- end -}}
  {{- $seconds -}}
{{- end -}}
{{- end -}}

{{- /* Seconds from 1970 to the beginning of a day, in UTC. No day is long before 1970. */ -}}
{{- define "nativelink.midnight" -}}
{{- printf "%sZ" . | toDate "2006-01-02Z07:00" | unixEpoch -}}
{{- end -}}

{{- /* Bytes of a share, a percentage or a size; a list of the share and of the bytes of the whole. */ -}}
{{- define "nativelink.part" -}}
{{- $share := toString (index . 0) -}}
{{- if hasSuffix "%" $share -}}
  {{- divf (mulf (trimSuffix "%" $share) (index . 1)) 100 | floor | int64 -}}
{{- else -}}
  {{- include "nativelink.bytes" $share -}}
{{- end -}}
{{- end -}}

{{- /* Bytes in the largest binary unit that gives at least 1. */ -}}
{{- define "nativelink.sizeText" -}}
{{- $unit := "" -}}
{{- $factor := 1 -}}
{{- $power := 1 -}}
{{- range $each := list "Ki" "Mi" "Gi" "Ti" "Pi" "Ei" -}}
  {{- $power = mul $power 1024 -}}
  {{- if ge (int64 $) $power -}}
    {{- $unit = $each -}}
    {{- $factor = $power -}}
  {{- end -}}
{{- end -}}
{{- printf "%.1f" (divf . $factor) | trimSuffix ".0" -}}{{- $unit -}}
{{- end -}}

{{- /* The network that is one IP address, and nothing for the name of a host. */ -}}
{{- define "nativelink.network" -}}
{{- if regexMatch "^[0-9]+\\.[0-9]+\\.[0-9]+\\.[0-9]+$" . -}}
  {{- printf "%s/32" . -}}
{{- else if contains ":" . -}}
  {{- printf "%s/128" (lower .) -}}
{{- end -}}
{{- end -}}

{{- /* A value as messages show it, cut to 60 characters. */ -}}
{{- define "nativelink.shown" -}}
{{- $text := ternary (printf "'%v'" .) (toRawJson .) (kindIs "string" .) -}}
{{- if gt (len $text) 60 -}}
  {{- $text = printf "%s..." (trunc 57 $text) -}}
{{- end -}}
{{- $text -}}
{{- end -}}

{{- /* Called as the translated functions are: with a dict of `args`, and `result` for the answer. */ -}}

{{- define "nativelink.partition" -}}
{{- $parts := splitn (index .args 1) 2 (index .args 0) -}}
{{- if contains (index .args 1) (index .args 0) -}}
  {{- $_ := set . "result" (list $parts._0 (index .args 1) $parts._1) -}}
{{- else -}}
  {{- $_ := set . "result" (list (index .args 0) "" "") -}}
{{- end -}}
{{- end -}}

{{- define "nativelink.rpartition" -}}
{{- $parts := splitList (index .args 1) (index .args 0) -}}
{{- if contains (index .args 1) (index .args 0) -}}
  {{- $_ := set . "result" (list (join (index .args 1) (initial $parts)) (index .args 1) (last $parts)) -}}
{{- else -}}
  {{- $_ := set . "result" (list "" "" (index .args 0)) -}}
{{- end -}}
{{- end -}}

{{- /* An amount of Kubernetes as a number; nil where it is none. */ -}}
{{- define "nativelink.amount" -}}
{{- $text := toString (index .args 0) -}}
{{- $_ := set . "result" (index (dict) "") -}}
{{- if regexMatch "^[+-]?([0-9]+(\\.[0-9]*)?|\\.[0-9]+)([numkMGTPE]|[KMGTPE]i|[eE][+-]?[0-9]{1,2})?$" $text -}}
  {{- $number := regexFind "^[+-]?[0-9.]+" $text -}}
  {{- $unit := trimPrefix $number $text -}}
  {{- $powers := dict "n" -3 "u" -2 "m" -1 "" 0 "k" 1 "K" 1 "M" 2 "G" 3 "T" 4 "P" 5 "E" 6 -}}
  {{- $amount := float64 $number -}}
  {{- if regexMatch "^[eE][+-]?[0-9]+$" $unit -}}
    {{- $amount = float64 $text -}}
  {{- else -}}
    {{- $power := index $powers (trimSuffix "i" $unit) -}}
    {{- range until (max $power (sub 0 $power) | int) -}}
      {{- $factor := ternary 1024 1000 (hasSuffix "i" $unit) -}}
      {{- if gt $power 0 -}}
        {{- $amount = mulf $amount $factor -}}
      {{- else -}}
        {{- $amount = divf $amount $factor -}}
      {{- end -}}
    {{- end -}}
  {{- end -}}
  {{- $_ := set . "result" $amount -}}
{{- end -}}
{{- end -}}

{{- /* The findings of an IP block of IPv4. Addresses of IPv6 are too long for Go's numbers, so the API server judges them. */ -}}
{{- define "nativelink.ipBlock" -}}
{{- $path := index .args 0 -}}
{{- $block := index .args 1 -}}
{{- $findings := list -}}
{{- $whole := dict -}}
{{- $texts := concat (list $block.cidr) ($block.except | default list) -}}
{{- range $index, $text := $texts -}}
  {{- if regexMatch "^[0-9.]+/[0-9]+$" $text -}}
    {{- $where := ternary (printf "%s.cidr" $path) (printf "%s.except[%d]" $path (sub $index 1)) (eq $index 0) -}}
    {{- $address := 0 -}}
    {{- range $byte := splitList "." (regexFind "^[0-9.]+" $text) -}}
      {{- $address = add (mul $address 256) $byte -}}
    {{- end -}}
    {{- $size := 1 -}}
    {{- range until (sub 32 (regexFind "[0-9]+$" $text) | int) -}}
      {{- $size = mul $size 2 -}}
    {{- end -}}
    {{- $first := sub $address (mod $address $size) -}}
    {{- $bytes := list -}}
    {{- range $factor := list 16777216 65536 256 1 -}}
      {{- $bytes = append $bytes (mod (div $first $factor) 256 | toString) -}}
    {{- end -}}
    {{- $network := printf "%s/%s" (join "." $bytes) (regexFind "[0-9]+$" $text) -}}
    {{- if ne $first $address -}}
      {{- $problem := printf "'%s' is an address inside of a range" $text -}}
      {{- $findings = append $findings (list $where $problem (printf "write %s" $network)) -}}
    {{- end -}}
    {{- if eq $index 0 -}}
      {{- $whole = dict "first" $first "size" $size "text" $network -}}
    {{- else if $whole -}}
      {{- if or (ge $size $whole.size) (ne (sub $first (mod $first $whole.size)) $whole.first) -}}
        {{- $problem := printf "is %s, which is not a part of %s" $text $whole.text -}}
        {{- $findings = append $findings (list $where $problem "write a smaller range inside of cidr") -}}
      {{- end -}}
    {{- end -}}
  {{- end -}}
{{- end -}}
{{- $_ := set . "result" $findings -}}
{{- end -}}

{{- /* Whether a CIDR range contains an address: both have the same first bits. */ -}}
{{- define "nativelink.inRange" -}}
{{- $address := index .args 0 -}}
{{- $cidr := index .args 1 -}}
{{- $found := false -}}
{{- if and (regexMatch "^[0-9A-Fa-f.:]+/[0-9]+$" $cidr) (eq (contains ":" $address) (contains ":" $cidr)) -}}
  {{- $found = true -}}
  {{- $length := regexFind "[0-9]+$" $cidr | int -}}
  {{- $bits := ternary 16 8 (contains ":" $cidr) -}}
  {{- $parts := include "nativelink.addressParts" (regexFind "^[^/]+" $cidr) | splitList " " -}}
  {{- range $index, $part := include "nativelink.addressParts" $address | splitList " " -}}
    {{- $unit := 1 -}}
    {{- range until (sub $bits (max 0 (min $bits (sub $length (mul $index $bits)))) | int) -}}
      {{- $unit = mul $unit 2 -}}
    {{- end -}}
    {{- $found = and $found (eq (div (int64 $part) $unit) (div (index $parts $index | int64) $unit)) -}}
  {{- end -}}
{{- end -}}
{{- $_ := set . "result" $found -}}
{{- end -}}

{{- /* The numbers of an address: four of IPv4, or eight of IPv6. */ -}}
{{- define "nativelink.addressParts" -}}
{{- if contains ":" . -}}
  {{- $sides := splitList "::" . -}}
  {{- $first := splitList ":" (index $sides 0) | compact -}}
  {{- $last := splitList ":" (rest $sides | join "") | compact -}}
  {{- $zeros := list -}}
  {{- range until (sub 8 (add (len $first) (len $last)) | int) -}}
    {{- $zeros = append $zeros "0" -}}
  {{- end -}}
  {{- $numbers := list -}}
  {{- range concat $first $zeros $last -}}
    {{- $numbers = append $numbers (printf "0x%s" . | int64) -}}
  {{- end -}}
  {{- join " " $numbers -}}
{{- else -}}
  {{- splitList "." . | join " " -}}
{{- end -}}
{{- end -}}

{{- define "nativelink.count" -}}
{{- $frame := . -}}
{{- $count := 0 -}}
{{- range $item := index .args 0 -}}
  {{- if eq $item (index $frame.args 1) -}}
    {{- $count = add1 $count -}}
  {{- end -}}
{{- end -}}
{{- $_ := set . "result" $count -}}
{{- end -}}

{{- /* A value of the chart as the functions want it: Helm makes a float of each number. */ -}}
{{- define "nativelink.plain" -}}
{{- $frame := . -}}
{{- $value := index .args 0 -}}
{{- if kindIs "map" $value -}}
  {{- $_ := set . "result" dict -}}
  {{- range $key, $item := $value -}}
    {{- $each := dict "args" (list $item) -}}
    {{- template "nativelink.plain" $each -}}
    {{- $_ := set $frame.result $key $each.result -}}
  {{- end -}}
{{- else if kindIs "slice" $value -}}
  {{- $_ := set . "result" list -}}
  {{- range $item := $value -}}
    {{- $each := dict "args" (list $item) -}}
    {{- template "nativelink.plain" $each -}}
    {{- $_ := set $frame "result" (append $frame.result $each.result) -}}
  {{- end -}}
{{- else if and (kindIs "float64" $value) (eq (floor $value) (float64 $value)) -}}
  {{- $_ := set . "result" (int64 $value) -}}
{{- else -}}
  {{- $_ := set . "result" $value -}}
{{- end -}}
{{- end -}}
