{{- define "kraken.name" -}}
{{- if contains "kraken" .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{ else }}{{ printf "%s-kraken" .Release.Name | trunc 40 | trimSuffix "-" }}{{ end -}}
{{- end -}}

{{- define "kraken.selector" -}}
app.kubernetes.io/name: kraken
app.kubernetes.io/instance: {{ .top.Release.Name }}
app.kubernetes.io/component: {{ .role }}
{{- end -}}

{{- define "kraken.labels" -}}
{{ include "kraken.selector" . }}
app.kubernetes.io/version: {{ .top.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .top.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .top.Chart.Name .top.Chart.Version }}
{{- end -}}

{{- define "kraken.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}

{{/* The host name of the pods of a StatefulSet behind their own name and a dot. */}}
{{- define "kraken.domain" -}}
{{ include "kraken.name" .top }}-{{ .role }}.{{ .top.Release.Namespace }}.svc.{{ .top.Values.clusterDomain }}
{{- end -}}

{{/* The base URLs of the pods of a StatefulSet, as a list in YAML. */}}
{{- define "kraken.urls" -}}
{{- $domain := include "kraken.domain" . -}}
{{- $name := printf "%s-%s" (include "kraken.name" .top) .role -}}
{{- range $n := until (int .replicas) }}
- {{ printf "https://%s-%d.%s:%d" $name $n $domain (int $.port) }}
{{- end }}
{{- end -}}

{{/* The same with their names. */}}
{{- define "kraken.members" -}}
{{- $domain := include "kraken.domain" . -}}
{{- $name := printf "%s-%s" (include "kraken.name" .top) .role -}}
{{- range $n := until (int .replicas) }}
- {name: {{ printf "%s-%d" $name $n }}, url: {{ printf "https://%s-%d.%s:%d" $name $n $domain (int $.port) | quote }}}
{{- end }}
{{- end -}}

{{/* The Secrets with certificates are called so, and a hyphen and the role. */}}
{{- define "kraken.secrets" -}}
{{ .Values.tls.prefix | default (include "kraken.name" .) }}
{{- end -}}

{{/*
Files of certificates, before `prepare` puts names in. In a Secret agents and origins have one each, for others know them by
their keys.
*/}}
{{- define "kraken.tls" -}}
{{- $name := "tls" -}}
{{- if eq .top.Values.tls.mode "secrets" -}}
{{- $name = get (dict "origin" "POD_NAME" "agent" "NODE_NAME") .role | default "tls" -}}
{{- end -}}
cert: /etc/kraken/tls/{{ $name }}.crt
key: /etc/kraken/tls/{{ $name }}.key
ca: /etc/kraken/tls/ca.crt
{{- end -}}

{{- define "kraken.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "kraken.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{- define "kraken.podEnvironment" -}}
- name: POD_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- name: POD_IP
  valueFrom: {fieldRef: {fieldPath: status.podIP}}
- name: NODE_NAME
  valueFrom: {fieldRef: {fieldPath: spec.nodeName}}
{{- end -}}

{{/* A file of certificates with the names of environment variables for what only the pod knows. */}}
{{- define "kraken.expanded" -}}
{{ . | replace "POD_NAME" "$(POD_NAME)" | replace "NODE_NAME" "$(NODE_NAME)" }}
{{- end -}}

{{/* Writes the configuration with what only the pod itself knows. */}}
{{- define "kraken.prepare" -}}
{{- $key := (include "kraken.tls" . | fromYaml).key | replace "POD_NAME" "$POD_NAME" | replace "NODE_NAME" "$NODE_NAME" -}}
{{- $is_own := contains "$" $key -}}
- name: prepare
  image: {{ include "kraken.image" .top | quote }}
  imagePullPolicy: {{ .top.Values.image.pullPolicy }}
  securityContext: {{ include "kraken.containerSecurity" .top | nindent 4 }}
  env: {{ include "kraken.podEnvironment" .top | nindent 4 }}
  command:
    - sh
    - -euc
    - |
      {{- if $is_own }}
      if [ ! -e "{{ $key }}" ]; then
          echo "the secret {{ include "kraken.secrets" .top }}-{{ .role }} has no {{ base $key }}: run deploy/helm/certificates" >&2
          exit 1
      fi
      {{- end }}
      case $POD_IP in *:*) address="[$POD_IP]" ;; *) address=$POD_IP ;; esac
      sed -e "s/POD_NAME/$POD_NAME/g" -e "s/NODE_NAME/$NODE_NAME/g" -e "s/POD_ADDRESS:\([0-9]*\)/'$address:\1'/" \
          /etc/kraken/template/{{ .role }}.yaml >/etc/kraken/run/{{ .role }}.yaml
  volumeMounts:
    - {name: template, mountPath: /etc/kraken/template, readOnly: true}
    - {name: run, mountPath: /etc/kraken/run}
    {{- if $is_own }}
    - {name: tls, mountPath: /etc/kraken/tls, readOnly: true}
    {{- end }}
{{- end -}}

{{- define "kraken.volumes" -}}
- name: template
  configMap: {name: {{ include "kraken.name" .top }}}
- name: members
  configMap: {name: {{ include "kraken.name" .top }}-members}
- name: run
  emptyDir: {medium: Memory, sizeLimit: 4Mi}
{{- if eq .top.Values.tls.mode "secrets" }}
- name: tls
  # For the group of the pod.
  secret: {secretName: {{ printf "%s-%s" (include "kraken.secrets" .top) .role | quote }}, defaultMode: 0440}
{{- else }}
- name: tls
  csi:
    driver: csi.cert-manager.io
    readOnly: true
    volumeAttributes:
      csi.cert-manager.io/issuer-name: {{ .top.Values.tls.issuer.name | quote }}
      csi.cert-manager.io/issuer-kind: {{ .top.Values.tls.issuer.kind | quote }}
      csi.cert-manager.io/issuer-group: {{ .top.Values.tls.issuer.group | quote }}
      csi.cert-manager.io/duration: {{ .top.Values.tls.duration | quote }}
      csi.cert-manager.io/common-name: {{ .role | quote }}
      csi.cert-manager.io/dns-names: {{ if .named }}{{ printf "localhost,${POD_NAME}.%s" (include "kraken.domain" .) | quote }}{{ else }}localhost{{ end }}
      csi.cert-manager.io/ip-sans: 127.0.0.1
      csi.cert-manager.io/uri-sans: {{ printf "urn:kraken:role:%s" .role | quote }}
      csi.cert-manager.io/key-usages: digital signature,server auth,client auth
      csi.cert-manager.io/reuse-private-key: 'true'
      csi.cert-manager.io/fs-group: '65532'
{{- end }}
{{- range .values.secrets }}
- name: {{ printf "secret-%s" . }}
  secret: {secretName: {{ . | quote }}}
{{- end }}
{{- end -}}

{{/*
Clients' own TLS is not what `kraken health` speaks: its port is all that is asked then, at the address of the pod unless
the process listens at another one only.
*/}}
{{- define "kraken.probe" -}}
{{- if .its.values.config.client_tls -}}
tcpSocket: {port: {{ (index .its.ports 0).containerPort }}{{ with .its.host }}, host: {{ . | trimPrefix "[" | trimSuffix "]" | quote }}{{ end }}}
{{- else -}}
exec: {command: {{ concat (list "kraken" "health" .its.url) .how | toJson }}}
{{- end }}
timeoutSeconds: 12
{{- end -}}

{{/* The process itself, without where it keeps things. */}}
{{- define "kraken.container" -}}
{{- $tls := include "kraken.tls" . | fromYaml -}}
- name: {{ .role }}
  image: {{ include "kraken.image" .top | quote }}
  imagePullPolicy: {{ .top.Values.image.pullPolicy }}
  command: [{{ printf "kraken-%s" .role }}, --config, /etc/kraken/run/{{ .role }}.yaml]
  securityContext: {{ include "kraken.containerSecurity" .top | nindent 4 }}
  env:
    {{- include "kraken.podEnvironment" .top | nindent 4 }}
    - {name: KRAKEN_CERT, value: {{ include "kraken.expanded" $tls.cert }}}
    - {name: KRAKEN_KEY, value: {{ include "kraken.expanded" $tls.key }}}
    - {name: KRAKEN_CA, value: {{ $tls.ca }}}
    {{- with .values.environment }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  ports: {{ toYaml .ports | nindent 4 }}
  # Opening a large store takes a while.
  startupProbe:
    {{- include "kraken.probe" (dict "its" . "how" (list "--live")) | nindent 4 }}
    periodSeconds: 5
    failureThreshold: 120
  livenessProbe:
    {{- include "kraken.probe" (dict "its" . "how" (list "--live")) | nindent 4 }}
    periodSeconds: 20
    failureThreshold: 6
  readinessProbe:
    {{- include "kraken.probe" (dict "its" . "how" list) | nindent 4 }}
    periodSeconds: 10
  resources: {{ toYaml .values.resources | nindent 4 }}
  volumeMounts:
    - {name: run, mountPath: /etc/kraken/run, readOnly: true}
    - {name: members, mountPath: /etc/kraken/members, readOnly: true}
    - {name: tls, mountPath: /etc/kraken/tls, readOnly: true}
    {{- range .values.secrets }}
    - {name: {{ printf "secret-%s" . }}, mountPath: /etc/kraken/secrets/{{ . }}, readOnly: true}
    {{- end }}
    {{- if .store }}
    - {name: store, mountPath: /var/lib/kraken}
    {{- end }}
{{- end -}}

{{/* Where pods go. */}}
{{- define "kraken.placement" -}}
{{- with .values.nodeSelector }}
nodeSelector: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations: {{ toYaml . | nindent 2 }}
{{- end }}
{{- if .values.affinity }}
affinity: {{ toYaml .values.affinity | nindent 2 }}
{{- else if .spread }}
affinity:
  podAntiAffinity:
    preferredDuringSchedulingIgnoredDuringExecution:
      - weight: 100
        podAffinityTerm:
          topologyKey: kubernetes.io/hostname
          labelSelector:
            matchLabels: {{ include "kraken.selector" . | nindent 14 }}
{{- end }}
{{- with .top.Values.image.pullSecrets }}
imagePullSecrets: {{ toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* A StatefulSet with its headless service. */}}
{{- define "kraken.set" -}}
{{- $name := printf "%s-%s" (include "kraken.name" .top) .role -}}
apiVersion: v1
kind: Service
metadata:
  name: {{ $name }}
  namespace: {{ .top.Release.Namespace }}
  labels: {{ include "kraken.labels" . | nindent 4 }}
spec:
  clusterIP: None
  # They find each other before they are ready.
  publishNotReadyAddresses: true
  selector: {{ include "kraken.selector" . | nindent 4 }}
  ports:
    {{- range .ports }}
    - {name: {{ .name }}, port: {{ .containerPort }}, targetPort: {{ .name }}, protocol: {{ .protocol }}}
    {{- end }}
---
apiVersion: apps/v1
kind: StatefulSet
metadata:
  name: {{ $name }}
  namespace: {{ .top.Release.Namespace }}
  labels: {{ include "kraken.labels" . | nindent 4 }}
spec:
  serviceName: {{ $name }}
  replicas: {{ .values.replicas }}
  podManagementPolicy: Parallel
  updateStrategy: {type: RollingUpdate}
  selector:
    matchLabels: {{ include "kraken.selector" . | nindent 6 }}
  template:
    metadata:
      labels: {{ include "kraken.labels" . | nindent 8 }}
      annotations:
        checksum/config: {{ include "kraken.checksum" . }}
    spec:
      automountServiceAccountToken: false
      enableServiceLinks: false
      terminationGracePeriodSeconds: 90
      securityContext: {{ include "kraken.podSecurity" .top | nindent 8 }}
      {{- include "kraken.placement" (merge (dict "spread" true) .) | nindent 6 }}
      initContainers: {{ include "kraken.prepare" . | nindent 8 }}
      containers: {{ include "kraken.container" . | nindent 8 }}
      volumes: {{ include "kraken.volumes" (merge (dict "named" true) .) | nindent 8 }}
  {{- if .store }}
  volumeClaimTemplates:
    - metadata:
        name: store
        labels: {{ include "kraken.selector" . | nindent 10 }}
      spec:
        accessModes: [ReadWriteOnce]
        {{- with .values.storage.storageClass }}
        storageClassName: {{ . | quote }}
        {{- end }}
        resources: {requests: {storage: {{ .values.storage.size | quote }}}}
  {{- end }}
{{- end -}}

{{/* What changes when a process has to start anew: what it reads, and not what others read. */}}
{{- define "kraken.checksum" -}}
{{ index (include "kraken.config" .top | fromYaml) (printf "%s.yaml" .role) | sha256sum }}
{{- end -}}

{{/* What each process reads, before it knows its name and address. */}}
{{- define "kraken.config" -}}
{{- $top := . -}}
{{- $members := "/etc/kraken/members" -}}
{{- $origins := dict "origins_file" (printf "%s/origins.yaml" $members) -}}
{{- $indexes := dict "build_indexes_file" (printf "%s/build-indexes.yaml" $members) -}}
{{- $tls := dict -}}
{{- range $role := list "origin" "build-index" "tracker" "proxy" "agent" -}}
{{- $_ := set $tls $role (include "kraken.tls" (dict "top" $top "role" $role) | fromYaml) -}}
{{- end -}}
origin.yaml: |
  {{- $own := dict "name" "POD_NAME" "store" "/var/lib/kraken/origin" "listen" "0.0.0.0:7605" "peer_listen" "0.0.0.0:7603" "advertise" "POD_ADDRESS:7603" "tls" $tls.origin }}
  {{- if not (or .Values.origin.config.backend .Values.origin.config.backends) }}{{ $_ := set $own "backend" (dict "noop" dict) }}{{ end }}
  {{- mergeOverwrite (deepCopy $own) $origins .Values.origin.config | toYaml | nindent 2 }}
build-index.yaml: |
  {{- $list := include "kraken.members" (dict "top" $top "role" "build-index" "replicas" .Values.buildIndex.replicas "port" 7604) | fromYamlArray }}
  {{- $own := dict "name" "POD_NAME" "store" "/var/lib/kraken/build-index" "listen" "0.0.0.0:7604" "build_indexes" $list "tls" (index $tls "build-index") }}
  {{- mergeOverwrite (deepCopy $own) $origins .Values.buildIndex.config | toYaml | nindent 2 }}
tracker.yaml: |
  {{- $own := dict "listen" "0.0.0.0:7601" "tls" $tls.tracker }}
  {{- mergeOverwrite (deepCopy $own) $origins .Values.tracker.config | toYaml | nindent 2 }}
proxy.yaml: |
  {{- $own := dict "listen" "0.0.0.0:7602" "tls" $tls.proxy }}
  {{- mergeOverwrite (deepCopy $own) $origins $indexes .Values.proxy.config | toYaml | nindent 2 }}
agent.yaml: |
  {{- $own := dict "store" "/var/lib/kraken/agent" "peer_listen" "0.0.0.0:7611" "advertise" "POD_ADDRESS:7611" "registry_listen" .Values.agent.registryListen "trackers_file" (printf "%s/trackers.yaml" $members) "tls" $tls.agent }}
  {{- mergeOverwrite (deepCopy $own) $indexes .Values.agent.config | toYaml | nindent 2 }}
{{- end -}}
