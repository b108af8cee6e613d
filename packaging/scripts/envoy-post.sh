# The module of the other package, if that is here, says what it is.
if command -v selinuxenabled >/dev/null && selinuxenabled; then restorecon /usr/lib/onramp/envoy || :; fi
# When a running Envoy is replaced is left to the admin: for a while there are two, with the memory of two.
if [ -d /run/systemd/system ] && systemctl -q is-active 'onramp-envoy@*.service'; then
	echo 'onramp-envoy: the Envoy that runs goes on with the old file; to change over, without a lost request: onramp proxy replace'
fi
