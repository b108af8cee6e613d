if [ "$1" = configure ]; then
	if [ -n "${2-}" ]; then after_upgrade; else after_install; fi
fi
