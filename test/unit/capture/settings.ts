import type {HostFacts} from '../../../src/capture/context.ts';
import type {CaptureConfig} from '../../../src/config/index.ts';
import {parseConfig} from '../../../src/config/index.ts';

/** Settings as they would be read, with what is given laid over the defaults. */
export function settings(
	changes: Partial<CaptureConfig> = {},
	variables: Readonly<Record<string, string>> = {},
): CaptureConfig {
	const {config} = parseConfig({
		flags: {namespace: 'test'},
		env: variables,
		file: undefined,
		bundle: undefined,
		host: {
			hostname: 'vm',
			cwd: '/',
			envoyPath: '/usr/local/bin/envoy',
			interfaces: {eth0: [{address: '198.18.0.11', family: 'IPv4', internal: false}]},
		},
	} as unknown as Parameters<typeof parseConfig>[0]);
	return {...config.capture, ...changes};
}

export const host: HostFacts = {
	users: {onramp: {uid: 990, gid: 991}, app: {uid: 1001, gid: 1001}},
	groups: {workers: 2000},
	interfaces: [
		{name: 'lo', isBridge: false, hasDefaultRoute: false},
		{name: 'eth0', isBridge: false, hasDefaultRoute: true},
		{name: 'docker0', isBridge: true, hasDefaultRoute: false},
	],
	nameservers: ['10.0.0.2', 'fd00::2'],
	isSshHidden: false,
	sshPorts: [22],
	ipv6: 'on',
	hasConntrackTimeouts: true,
	cgroups: {'app.service': 'system.slice/app.service'},
};
