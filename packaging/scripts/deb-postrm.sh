case $1 in
remove) after_remove ;;
purge)
	# The private key, and what "onramp join" has put beside the configuration.
	rm -rf /var/lib/onramp /etc/onramp/bundle /etc/onramp/join.yaml
	rmdir --ignore-fail-on-non-empty /etc/onramp 2>/dev/null || :
	# What an admin has put there is not for the next one who gets the number of our group.
	if [ -d /etc/onramp ]; then chown root:root /etc/onramp; fi
	if getent passwd onramp >/dev/null; then userdel onramp || :; fi
	if getent group onramp >/dev/null; then groupdel onramp || :; fi
	;;
esac
