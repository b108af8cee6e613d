import {readFileSync} from 'node:fs';
import {version as ownVersion} from '../../src/version.ts';
import {envoyVersion} from '../fetch-envoy.ts';

/** One package, whatever its format. */
export interface PackageDescription {
	readonly name: 'onramp' | 'onramp-envoy';
	readonly version: string;
	/** `NAME <ADDRESS>`, of who answers for the packages; not of the program alone. */
	readonly maintainer: string;
	readonly homepage: string | undefined;
	/** Begins with a capital, as rpm wants it. */
	readonly summary: string;
	readonly text: string;
	/** By format: the names differ. */
	readonly depends: Readonly<Record<'deb' | 'rpm', readonly string[]>>;
	readonly recommends: Readonly<Record<'deb' | 'rpm', readonly string[]>>;
	/** Kept when the admin has edited them. */
	readonly configFiles: readonly string[];
	/** Files of packaging/scripts by the name that nfpm has for their moment; each is a whole script in the end. */
	readonly scripts: Readonly<Record<'deb' | 'rpm', Readonly<Record<string, string>>>>;
}

/** What whoever builds packages may say otherwise. */
export interface Publisher {
	readonly version?: string | undefined;
	readonly maintainer?: string | undefined;
	readonly homepage?: string | undefined;
}

/** An address that cannot be: who publishes packages gives theirs. */
const nobody = 'The onramp authors <maintainers@onramp.invalid>';

export function describePackages({
	version = ownVersion,
	maintainer = nobody,
	homepage,
}: Publisher = {}): readonly PackageDescription[] {
	if (!/^[^<>]+ <[^<>@\s]+@[^<>@\s]+>$/.test(maintainer))
		throw new Error(`maintainer "${maintainer}": write it as NAME <ADDRESS>`);
	return [
		{
			name: 'onramp',
			version,
			maintainer,
			homepage,
			summary: 'Makes this machine a workload of an Istio mesh',
			text: 'Trades the token of an istioctl bundle for a certificate and keeps it fresh,\nbrings the configuration of istiod to a local Envoy, and has the machine\nregistered.',
			// What Node is linked with.
			depends: {
				deb: ['libc6 (>= 2.28)', 'libstdc++6', 'libgcc-s1 | libgcc1'],
				rpm: ['glibc >= 2.28', 'libstdc++.so.6()(64bit)', 'libgcc_s.so.1()(64bit)'],
			},
			recommends: {
				deb: ['onramp-envoy', 'nftables | iptables', 'iproute2'],
				rpm: ['onramp-envoy', 'nftables', 'iproute'],
			},
			configFiles: ['/etc/onramp/onramp.yaml', '/etc/apparmor.d/onramp'],
			scripts: {
				deb: {
					postinstall: script('setup', 'deb-postinst'),
					preremove: script('setup', 'deb-prerm'),
					postremove: script('setup', 'deb-postrm'),
				},
				rpm: {
					postinstall: script('setup', 'rpm-post'),
					preremove: script('setup', 'rpm-preun'),
					postremove: script('setup', 'rpm-postun'),
				},
			},
		},
		{
			name: 'onramp-envoy',
			version: envoyVersion,
			maintainer,
			homepage,
			summary: 'Stock Envoy that onramp was tested with',
			text: 'A stock build of Envoy at the place where onramp looks first.',
			depends: {deb: ['libc6 (>= 2.30)'], rpm: ['glibc >= 2.30']},
			recommends: {deb: [], rpm: []},
			configFiles: [],
			scripts: {deb: {postinstall: script('envoy-post')}, rpm: {postinstall: script('envoy-post')}},
		},
	];
}

function script(...names: string[]): string {
	return ['#!/bin/sh\nset -e\n', ...names.map(name => readFileSync(`packaging/scripts/${name}.sh`, 'utf8'))].join('');
}
