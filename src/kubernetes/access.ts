import {readFile} from 'node:fs/promises';
import {rootCertificates} from 'node:tls';
import type {KubernetesConfig} from '../config/types.ts';
import {AgentError, reasonOf} from '../errors.ts';
import {Secret} from '../log.ts';
import {readKubeconfig} from './kubeconfig.ts';

/** All that one request needs. */
export interface Access {
	readonly server: URL;
	/** Whom to believe; PEM. */
	readonly rootsPem: string;
	/** Name in the server's certificate, if it is not the host. */
	readonly serverName: string | undefined;
	readonly token: Secret | undefined;
	readonly certificate: {readonly certPem: string; readonly keyPem: Secret} | undefined;
	/** For people: what says who we are. */
	readonly credentials: string;
	/** For people: where the roots come from. */
	readonly roots: string;
}

/** No file of credentials is as large. */
const maxFileBytes = 256 * 1024;

/**
 * Reads everything anew, so that whatever was rotated counts with the next request.
 * @throws AgentError `kubernetes.access_unusable`
 */
export async function loadAccess(config: KubernetesConfig): Promise<Access> {
	if (config.kind === 'kubeconfig') return readKubeconfig(config.path, await readText(config.path, 'kubeconfig'));
	const {server, trustAnchor, tokenPath} = config;
	const token = await readToken(tokenPath);
	return {
		server: new URL(server),
		rootsPem: trustAnchor.kind === 'system' ? rootCertificates.join('\n') : await readText(trustAnchor.path, 'roots'),
		serverName: undefined,
		token,
		certificate: undefined,
		credentials: `the token in ${tokenPath}`,
		roots: trustAnchor.kind === 'system' ? 'the roots of this machine' : trustAnchor.path,
	};
}

/** @throws AgentError `kubernetes.access_unusable` */
export async function readToken(path: string): Promise<Secret> {
	const token = (await readText(path, 'token')).trim();
	if (!/^[\x21-\x7e]+$/.test(token))
		throw new AgentError(
			'kubernetes.access_unusable',
			`read the token for the Kubernetes API from ${path}: ${token === '' ? 'the file is empty' : 'it holds more than one word'}`,
			{hint: `write the token alone: kubectl create token NAME -n NAMESPACE >${path}`},
		);
	return new Secret(token);
}

/** @throws AgentError `kubernetes.access_unusable` */
export async function readText(path: string, what: string): Promise<string> {
	try {
		const bytes = await readFile(path);
		if (bytes.length > maxFileBytes) throw new Error(`is larger than ${maxFileBytes / 1024} KiB`);
		return bytes.toString('utf8');
	} catch (cause) {
		throw new AgentError('kubernetes.access_unusable', `read ${what} for the Kubernetes API: ${reasonOf(cause)}`, {
			cause,
			hint: `put it at ${path} and let the user of the agent read it, or mend the settings of registration.kubernetes.*`,
		});
	}
}
