import type {ProxyConfig} from '../config/types.ts';

/** Nice to have; an Envoy that does not know one is started without it. */
export const optionalFlags: readonly string[] = [
	'--skip-deprecated-logs',
	'--allow-unknown-static-fields',
	'--file-flush-interval-msec',
];

export interface ArgumentsInput {
	readonly config: Pick<
		ProxyConfig,
		'bootstrapPath' | 'logPath' | 'drainMs' | 'concurrency' | 'logLevel' | 'componentLogLevel' | 'extraArguments'
	>;
	/** Addresses of this machine (INSTANCE_IPS). */
	readonly addresses: readonly string[];
	/** Optional flags this Envoy refused. */
	readonly refusedFlags: readonly string[];
}

/** Envoy's command line: Istio's, and a log file of its own. */
export function renderArguments({config, addresses, refusedFlags}: ArgumentsInput): string[] {
	const isV6Only = addresses.length > 0 && addresses.every(address => address.includes(':'));
	const flags: string[][] = [
		['-c', config.bootstrapPath],
		// With it Envoy dies with its parent and offers abstract sockets to every local user.
		['--disable-hot-restart'],
		['--drain-time-s', String(Math.ceil(config.drainMs / 1000))],
		['--drain-strategy', 'immediate'],
		['--local-address-ip-version', isV6Only ? 'v6' : 'v4'],
		['--file-flush-interval-msec', '1000'],
		['--allow-unknown-static-fields'],
		['--skip-deprecated-logs'],
		['-l', config.logLevel],
		...(config.componentLogLevel === '' ? [] : [['--component-log-level', config.componentLogLevel]]),
		...(config.concurrency === 0 ? [] : [['--concurrency', String(config.concurrency)]]),
		// A file, never a pipe: a reader that stalls would stop Envoy's main thread.
		['--log-path', config.logPath],
	];
	return [...flags.filter(([flag]) => !refusedFlags.includes(flag!)).flat(), ...config.extraArguments];
}

/** The optional flag that a failed start complains about, or undefined. */
export function findRefusedFlag(output: readonly string[]): string | undefined {
	// The usage text that follows names the flags it does know, so only the line of the complaint counts.
	return optionalFlags.find(flag => output.some(line => line.startsWith(`${flag} -- Couldn't find match`)));
}
