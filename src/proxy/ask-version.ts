import {execFile} from 'node:child_process';

const withinMs = 20_000;

/** Out of `envoy  version: HASH/1.40.0/Clean/RELEASE/BoringSSL`; undefined for a program that says nothing of that kind. */
export function askVersion(path: string): Promise<string | undefined> {
	return new Promise(resolve => {
		execFile(path, ['--version'], {timeout: withinMs}, (_error, stdout) => {
			resolve(/version: [^/\s]*\/(\d+\.\d+\.\d+)/.exec(stdout)?.[1]);
		});
	});
}
