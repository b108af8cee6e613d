if [ "$1" = 0 ]; then
	after_remove
	# There is no purge: what was joined with is kept, and what holds nothing goes.
	rmdir --ignore-fail-on-non-empty /etc/onramp /var/lib/onramp 2>/dev/null || :
fi
