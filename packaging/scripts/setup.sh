# What both kinds of package do once their files are there.
create_user_and_directories() {
	if command -v systemd-sysusers >/dev/null; then
		systemd-sysusers onramp.conf
	elif ! getent passwd onramp >/dev/null; then
		useradd --system --user-group --home-dir /var/lib/onramp --no-create-home --shell /usr/sbin/nologin onramp
	fi
	if command -v systemd-tmpfiles >/dev/null; then
		systemd-tmpfiles --create onramp.conf || :
	else
		install -d -m 0750 -o root -g onramp /etc/onramp
		install -d -m 0700 -o onramp -g onramp /var/lib/onramp
	fi
}

has_apparmor() {
	[ "$(cat /sys/module/apparmor/parameters/enabled 2>/dev/null)" = Y ] && command -v apparmor_parser >/dev/null
}

has_selinux() {
	command -v selinuxenabled >/dev/null && selinuxenabled && command -v semodule >/dev/null && command -v restorecon >/dev/null
}

# Each change of the policy takes seconds, so it is one. What an admin has disabled stays disabled.
load_selinux_modules() {
	has_selinux || return 0
	semodule -X 200 -i /usr/share/selinux/packages/onramp.cil -i /usr/share/selinux/packages/onramp_permissive.cil ||
		echo 'onramp: the SELinux policy of this machine does not take the module; onramp runs without domains of its own'
	# The files came before the module that says what they are.
	restorecon -Ri /usr/lib/onramp /etc/onramp /var/lib/onramp /run/onramp /run/onramp-capture || :
}

remove_selinux_modules() {
	has_selinux || return 0
	semodule -X 200 -r onramp_permissive -r onramp 2>/dev/null || :
	# What is kept gets the types that it had without.
	restorecon -Ri /etc/onramp /var/lib/onramp || :
}

load_settings_of_the_kernel() {
	if has_apparmor; then apparmor_parser --replace --write-cache /etc/apparmor.d/onramp || :; fi
	load_selinux_modules
	# All files that say something of it are read, so the admin's counts.
	/usr/lib/systemd/systemd-sysctl --prefix=/net/ipv4/tcp_migrate_req 2>/dev/null || :
}

has_systemd() { [ -d /run/systemd/system ]; }

after_install() {
	create_user_and_directories
	load_settings_of_the_kernel
	if has_systemd; then systemctl daemon-reload || :; fi
	[ -e /etc/onramp/bundle ] || echo 'onramp is installed and does nothing yet: onramp join BUNDLE'
}

# Traffic goes on: Envoy and the rules are left alone, and the new agent takes them over.
after_upgrade() {
	create_user_and_directories
	load_settings_of_the_kernel
	has_systemd || return 0
	systemctl daemon-reload || :
	if systemctl -q is-failed onramp-agent.service; then
		# What ended it may be mended, and the restart of that one lets it try again.
		systemctl --no-block try-restart onramp.service || :
	else
		systemctl --no-block try-restart onramp-agent.service || :
	fi
}

before_remove() {
	if has_systemd; then
		systemctl disable onramp.service onramp-capture-watch.service onramp-dns-link.service 2>/dev/null || :
		# The last two also stop with the first, unless somebody has started them alone.
		systemctl stop onramp.service onramp-envoy@a.path onramp-envoy@b.path || :
		systemctl stop onramp-capture.service onramp-agent.service 'onramp-envoy@*.service' onramp-dns-link.service || :
	fi
	# Rules that were made by hand, and those that a stop leaves on purpose.
	onramp capture remove --all >/dev/null || echo 'onramp: rules may be left, see: nft list ruleset'
}

after_remove() {
	if has_systemd; then
		systemctl daemon-reload || :
		systemctl reset-failed 'onramp*' 2>/dev/null || :
	fi
	# By name, as the file may be gone by now.
	if has_apparmor; then
		printf 'profile onramp-agent {}\nprofile onramp-envoy {}\n' | apparmor_parser --remove 2>/dev/null || :
	fi
	remove_selinux_modules
	rm -rf /run/onramp /run/onramp-capture
}
