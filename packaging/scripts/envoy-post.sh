# Replacing a running Envoy cuts its connections, so when that happens is left to the admin.
if [ -d /run/systemd/system ] && systemctl -q is-active onramp-envoy.service; then
	echo 'onramp-envoy: the Envoy that runs goes on with the old file; to change over: systemctl restart onramp-envoy'
fi
