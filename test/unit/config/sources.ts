import {readdirSync, readFileSync} from 'node:fs';
import {dirname} from 'node:path';
import type {FileReader} from '../../../src/config/index.ts';
import {AgentError} from '../../../src/errors.ts';

export const fixtures = new URL('../../fixtures/bundle/', import.meta.url);

export type Files = Record<string, string | Uint8Array | Error>;

/** A disk that holds these files and their directories, all of them permitted; an Error is thrown on reading. */
export function memoryReader(files: Files, denied: readonly string[] = []): FileReader {
	const directories = new Set(['/']);
	for (const path of Object.keys(files)) for (let up = dirname(path); up !== '/'; up = dirname(up)) directories.add(up);
	return {
		read: (path, maxBytes) => {
			const content = files[path];
			if (content instanceof Error) throw content;
			return content === undefined ? undefined : Buffer.from(content as string).subarray(0, maxBytes + 1);
		},
		kind: path => (path in files ? 'file' : directories.has(path) ? 'directory' : undefined),
		can: (path, access) => !denied.includes(`${access} ${path}`) && (path in files || directories.has(path)),
	};
}

/** The files of a bundle in test/fixtures, as if they lay in that directory. */
export function bundleFiles(name: 'autoregister' | 'plain', directory = '/etc/onramp/bundle'): Files {
	const from = new URL(`${name}/`, fixtures);
	return Object.fromEntries(
		readdirSync(from).map(file => [`${directory}/${file}`, readFileSync(new URL(file, from), 'utf8')]),
	);
}

const address = (ip: string) => ({address: ip, family: ip.includes(':') ? 'IPv6' : 'IPv4', internal: false}) as never;

/** @param addresses - by interface */
export const hostWith = (addresses: Record<string, string[]>) => ({
	hostname: 'vm-1.example.org',
	cwd: '/home/admin',
	interfaces: Object.fromEntries(Object.entries(addresses).map(([name, ips]) => [name, ips.map(address)])),
});

export const host = hostWith({eth0: ['192.0.2.5']});

/** What is wrong, as `place: message`. */
export function problemsOf(load: () => unknown): string[] {
	try {
		load();
		return [];
	} catch (error) {
		if (!(error instanceof AgentError) || error.code !== 'config.invalid') throw error;
		const problems = error.fields['problems'] as {place: string; message: string; remedy: string}[];
		for (const {place, message, remedy} of problems)
			if (!error.message.includes(`${place}: ${message}; ${remedy}`) || !remedy)
				throw new Error(`not told: ${message}`);
		return problems.map(({place, message}) => `${place}: ${message}`);
	}
}
