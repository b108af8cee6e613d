import {dirname, resolve} from 'node:path';
import {rootCertificates} from 'node:tls';
import {parsePlainYaml} from '../config/index.ts';
import {AgentError, reasonOf} from '../errors.ts';
import {Secret} from '../log.ts';
import {type Access, readText, readToken} from './access.ts';

type Tree = Readonly<Record<string, unknown>>;

/**
 * The current context of a kubeconfig. Paths in it start at its directory. What would run a program or leave the server
 * unchecked is refused, each with what to do instead.
 * @throws AgentError `kubernetes.access_unusable`
 */
export async function readKubeconfig(path: string, text: string): Promise<Access> {
	const refuse = (what: string, hint: string, cause?: unknown): never => {
		throw new AgentError('kubernetes.access_unusable', `read kubeconfig ${path}: ${what}`, {hint, cause});
	};
	const parse = (): Tree => {
		try {
			return asTree(parsePlainYaml(path, text));
		} catch (cause) {
			return refuse(reasonOf(cause), 'copy the file again from where it was made', cause);
		}
	};
	const root = parse();
	const find = (list: string, name: string, what: string): Tree => {
		const items = Array.isArray(root[list]) ? root[list].map(asTree) : [];
		const found = items.find(item => item['name'] === name);
		if (!found)
			return refuse(`there is no ${what} "${name}"`, 'kubectl config view --minify --flatten makes a whole one');
		return asTree(found[what]);
	};
	const current = textOf(root['current-context']);
	if (!current) return refuse('no current-context is set', 'kubectl config use-context NAME --kubeconfig FILE');
	const context = find('contexts', current, 'context');
	const cluster = find('clusters', textOf(context['cluster']), 'cluster');
	const user = find('users', textOf(context['user']), 'user');

	for (const [name, hint] of refusedOfUser)
		if (user[name] !== undefined)
			refuse(`user "${textOf(context['user'])}" has ${name}, which the agent does not run or use`, hint);
	if (cluster['insecure-skip-tls-verify'] === true)
		refuse(
			'insecure-skip-tls-verify is set, and the agent always checks the server',
			'put the root certificate into certificate-authority-data instead',
		);
	if (cluster['proxy-url'] !== undefined)
		refuse('proxy-url is set, and the agent uses no proxy', 'give a server that can be reached directly');
	const server = textOf(cluster['server']);
	if (!URL.canParse(server) || new URL(server).protocol !== 'https:')
		return refuse(
			`server "${server.slice(0, 80)}" is not a URL that begins with https://`,
			'mend server of the cluster',
		);

	const at = (name: string) => resolve(dirname(path), name);
	/** `X-data` in base64, which counts more, or the file of `X`. */
	const material = async (tree: Tree, name: string): Promise<string | undefined> => {
		const data = textOf(tree[`${name}-data`]);
		if (data) return Buffer.from(data, 'base64').toString('utf8');
		const file = textOf(tree[name]);
		return file ? readText(at(file), name) : undefined;
	};
	const tokenFile = textOf(user['tokenFile']);
	// As client-go: a file is read anew, and counts more.
	const token = tokenFile ? await readToken(at(tokenFile)) : asSecret(textOf(user['token']));
	const certPem = await material(user, 'client-certificate');
	const keyPem = await material(user, 'client-key');
	if (!token && !(certPem && keyPem))
		refuse(
			`user "${textOf(context['user'])}" has neither a token nor a client certificate with its key`,
			'give tokenFile: a file that is kept fresh counts with each request',
		);
	const rootsPem = await material(cluster, 'certificate-authority');
	return {
		server: new URL(server),
		rootsPem: rootsPem ?? rootCertificates.join('\n'),
		serverName: textOf(cluster['tls-server-name']) || undefined,
		token,
		certificate: certPem && keyPem ? {certPem, keyPem: new Secret(keyPem)} : undefined,
		credentials: `${tokenFile ? `the token in ${at(tokenFile)}` : token ? 'the token' : 'the client certificate'} of user "${textOf(context['user'])}" in ${path}`,
		roots: rootsPem ? path : 'the roots of this machine',
	};
}

const useToken =
	'make a token of a ServiceAccount with docs/registration.yaml and name its file: tokenFile in the kubeconfig, or registration.kubernetes.token';

const refusedOfUser: readonly (readonly [name: string, hint: string])[] = [
	['exec', `the agent runs no programs of a kubeconfig; ${useToken}`],
	['auth-provider', `the agent runs no programs of a kubeconfig; ${useToken}`],
	['username', `Kubernetes takes no passwords; ${useToken}`],
	['as', `the agent does not impersonate; ${useToken}`],
];

const asTree = (value: unknown): Tree => (typeof value === 'object' && value !== null ? (value as Tree) : {});
const textOf = (value: unknown): string => (typeof value === 'string' ? value : '');
const asSecret = (value: string): Secret | undefined => (value ? new Secret(value.trim()) : undefined);
