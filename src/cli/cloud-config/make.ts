import {join, sep} from 'node:path';
import {checkBundleFiles, diskReader, type FileReader} from '../../config/index.ts';
import {AgentError} from '../../errors.ts';
import type {Flags} from '../index.ts';
import {bundleFiles} from '../join/bundle-files.ts';
import {examineToken} from '../join/token.ts';
import {loadFrom} from '../load.ts';
import {renderCloudConfig} from './render.ts';

export interface CloudConfigRequest {
	readonly bundle: string;
	readonly flags: Flags;
	readonly joinFlags: readonly string[];
	readonly packages: readonly string[];
}

const maxBytes = 2 ** 20;

/**
 * Checks a bundle as far as that can be done on another machine, and makes user-data of it.
 * @throws AgentError `config.invalid` with every problem
 */
export async function makeCloudConfig(
	{bundle, flags, joinFlags, packages}: CloudConfigRequest,
	now: Date = new Date(),
): Promise<{readonly text: string; readonly warnings: readonly string[]}> {
	if (diskReader.kind(bundle) !== 'directory') {
		throw new AgentError('config.invalid', `cloud-config: ${bundle} is not a directory`, {
			hint: 'name the directory that "istioctl x workload entry configure" wrote',
		});
	}
	// What is configured on this machine says nothing about the other.
	const {config} = await loadFrom({...flags, bundle}, {isStrict: true, files: onlyBelow(bundle), env: {}});
	const tokenPath = join(bundle, 'istio-token');
	const token = read(tokenPath);
	if (token === undefined) {
		throw new AgentError('config.invalid', `cloud-config: ${tokenPath}: the token is missing`, {
			hint: 'copy the whole bundle again',
		});
	}
	const problems = [
		...checkBundleFiles(bundle, diskReader, now).filter(({place}) => place !== tokenPath),
		...examineToken(token, tokenPath, config, now).problems,
	];
	const fatal = problems.filter(({severity}) => severity === 'error');
	if (fatal.length > 0) {
		const list = fatal.map(({place, message, remedy}) => `\n  ${place}: ${message}\n    → ${remedy}`).join('');
		throw new AgentError('config.invalid', `cloud-config with ${bundle}: the bundle cannot be used${list}`);
	}
	const files = Object.fromEntries(
		bundleFiles.flatMap(name => {
			const content = read(join(bundle, name));
			return content === undefined ? [] : [[name, content]];
		}),
	);
	return {
		text: renderCloudConfig({files, packages, joinFlags}),
		warnings: problems.map(({place, message}) => `${place}: ${message}`),
	};
}

function read(path: string): string | undefined {
	const bytes = diskReader.read(path, maxBytes);
	return bytes && Buffer.from(bytes).toString('utf8');
}

function onlyBelow(directory: string): FileReader {
	const isBelow = (path: string): boolean => path === directory || path.startsWith(directory + sep);
	return {
		...diskReader,
		read: (path, limit) => (isBelow(path) ? diskReader.read(path, limit) : undefined),
		kind: path => (isBelow(path) ? diskReader.kind(path) : undefined),
	};
}
