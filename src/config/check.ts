import {X509Certificate} from 'node:crypto';
import {dirname, join} from 'node:path';
import {reasonOf} from '../errors.ts';
import type {Problem} from './problems.ts';
import type {FileReader} from './reader.ts';
import {maxFileBytes} from './text-file.ts';
import {findTokenFault} from './token-shape.ts';
import type {Config, LoadedConfig, TrustAnchor} from './types.ts';

/**
 * What `config check` looks at beyond the text of the configuration: the files it names and the directories the
 * agent will write to, as the user that runs the check.
 * @param now - wall-clock time, for certificates
 */
export function checkConfig({config}: LoadedConfig, reader: FileReader, now: Date = new Date()): readonly Problem[] {
	return [
		...checkTrust(config, reader, now),
		...checkToken(config, reader),
		...checkEnvoy(config, reader),
		...checkIdentityFiles(config, reader),
		...checkDirectories(config, reader),
	];
}

/** The files of a bundle directory that no configuration is needed for: what `join` says when there is none. */
export function checkBundleFiles(directory: string, reader: FileReader, now: Date = new Date()): readonly Problem[] {
	return [
		...checkRoots(join(directory, 'root-cert.pem'), reader, now),
		...checkTokenFile(join(directory, 'istio-token'), reader),
	];
}

const error = (place: string, message: string, remedy: string): Problem => ({
	severity: 'error',
	place,
	message,
	remedy,
});
const warning = (place: string, message: string, remedy: string): Problem => ({
	severity: 'warning',
	place,
	message,
	remedy,
});

function checkTrust({controlPlane}: Config, reader: FileReader, now: Date): Problem[] {
	const pathOf = (anchor: TrustAnchor): string[] => (anchor.kind === 'file' ? [anchor.path] : []);
	const paths = new Set([...pathOf(controlPlane.trustAnchor), ...pathOf(controlPlane.caTrustAnchor)]);
	return [...paths].flatMap(path => checkRoots(path, reader, now));
}

const copyRoot = 'copy root-cert.pem again (ConfigMap istio-ca-root-cert in the namespace of the workload)';

/** PEM with at least one CA certificate that is valid now. */
function checkRoots(path: string, reader: FileReader, now: Date): Problem[] {
	const {bytes, problems} = readFile(path, reader, 'root certificate', copyRoot);
	if (!bytes) return problems;
	const text = Buffer.from(bytes).toString('latin1');
	const blocks = text.match(/-----BEGIN CERTIFICATE-----[^-]*-----END CERTIFICATE-----/g) ?? [];
	const begun = text.split('-----BEGIN CERTIFICATE-----').length - 1;
	if (begun > blocks.length) return [error(path, 'a root certificate is cut short', copyRoot)];
	if (blocks.length === 0) return [error(path, 'root certificate: there is no PEM certificate in the file', copyRoot)];
	const roots = blocks.map(parseCertificate);
	const broken = roots.find(root => root instanceof Error);
	if (broken) return [error(path, `root certificate cannot be read: ${broken.message}`, copyRoot)];
	const authorities = roots.filter(root => !(root instanceof Error) && root.ca) as X509Certificate[];
	if (authorities.length === 0) return [error(path, 'none of the certificates is that of a CA', copyRoot)];
	if (authorities.some(root => isValidAt(root, now))) return [];
	const [first] = authorities;
	return [
		error(
			path,
			`root certificate is not valid now (${first!.validFrom} to ${first!.validTo})`,
			`${copyRoot}, and look at the clock of this machine`,
		),
	];
}

function parseCertificate(pem: string): X509Certificate | Error {
	try {
		return new X509Certificate(pem);
	} catch (failure) {
		return failure instanceof Error ? failure : new Error(String(failure));
	}
}

const isValidAt = ({validFrom, validTo}: X509Certificate, now: Date): boolean =>
	new Date(validFrom) <= now && now <= new Date(validTo);

/** Only a warning: a machine that has its certificate needs the token never again. */
function checkToken({controlPlane, identity}: Config, reader: FileReader): Problem[] {
	if (identity.source.kind !== 'control-plane') return [];
	const [program] = controlPlane.tokenProgram;
	if (program === undefined)
		return controlPlane.credentialPath === undefined ? checkTokenFile(controlPlane.tokenPath, reader) : [];
	const remedy = 'give its path in identity.token-program, and let the user of the agent execute it';
	return reader.can(program, 'execute') ? [] : [warning(program, 'the program for tokens cannot be executed', remedy)];
}

function checkTokenFile(path: string, reader: FileReader): Problem[] {
	const remedy =
		'put a token there ("istioctl x workload entry configure" writes one), unless this machine has its certificate already';
	const {bytes, problems} = readFile(path, reader, 'bootstrap token', remedy);
	if (!bytes) return problems.map(problem => ({...problem, severity: 'warning'}));
	const text = Buffer.from(bytes).toString('latin1');
	if (text.trim() === '') return [warning(path, 'the bootstrap token is empty', remedy)];
	const fault = findTokenFault(text);
	return fault ? [warning(path, `the bootstrap token ${fault}`, remedy)] : [];
}

function checkEnvoy({proxy}: Config, reader: FileReader): Problem[] {
	if (proxy.mode !== 'spawn') return [];
	const kind = kindOf(proxy.binaryPath, reader);
	if (kind === undefined)
		return [error(proxy.binaryPath, 'Envoy is not there', 'install it, or give its path with --envoy')];
	if (kind !== 'file')
		return [error(proxy.binaryPath, 'is not a file, so it cannot be Envoy', 'give the path of Envoy with --envoy')];
	return reader.can(proxy.binaryPath, 'execute')
		? []
		: [error(proxy.binaryPath, 'Envoy may not be executed', `chmod 0755 ${proxy.binaryPath}`)];
}

function checkIdentityFiles({identity: {source}}: Config, reader: FileReader): Problem[] {
	if (source.kind === 'sds')
		return kindOf(source.socketPath, reader) === undefined
			? [
					warning(
						source.socketPath,
						'the socket of the SDS server is not there',
						'start that server, or set identity.socket',
					),
				]
			: [];
	if (source.kind !== 'files') return [];
	return [source.certPath, source.keyPath, source.rootPath].flatMap(
		path => readFile(path, reader, 'identity file', 'let what makes these files run first').problems,
	);
}

function checkDirectories(config: Config, reader: FileReader): Problem[] {
	const {proxy, status, relay, identity} = config;
	const files = [
		proxy.bootstrapPath,
		proxy.recordPath,
		proxy.logPath,
		proxy.adminSocketPath,
		status.controlSocketPath,
		relay.socketPath,
	];
	const directories = new Set([
		config.stateDir,
		config.runDir,
		identity.stateDir,
		...(identity.outputDir ? [identity.outputDir] : []),
		...files.map(path => dirname(path)),
	]);
	const problems = [...directories].flatMap(directory => checkWritable(directory, reader));
	// Several directories may fail at one missing parent.
	return problems.filter((problem, index) => problems.findIndex(other => other.place === problem.place) === index);
}

/** A directory that is not there is made by the agent, below the nearest one that is. */
function checkWritable(directory: string, reader: FileReader): Problem[] {
	const kind = kindOf(directory, reader);
	if (kind === undefined && dirname(directory) !== directory) return checkWritable(dirname(directory), reader);
	if (kind !== 'directory') return [error(directory, 'is not a directory', 'move it away, or set another directory')];
	return reader.can(directory, 'write') && reader.can(directory, 'execute')
		? []
		: [error(directory, 'cannot be written to', `give it to the user of the agent, or set another directory`)];
}

function readFile(
	path: string,
	reader: FileReader,
	what: string,
	remedy: string,
): {bytes?: Uint8Array; problems: Problem[]} {
	try {
		const bytes = reader.read(path, maxFileBytes);
		if (!bytes) return {problems: [error(path, `the ${what} is missing`, remedy)]};
		if (bytes.length > maxFileBytes)
			return {problems: [error(path, `the ${what} is larger than ${maxFileBytes} bytes`, remedy)]};
		return {bytes, problems: []};
	} catch (failure) {
		return {
			problems: [error(path, `the ${what} cannot be read: ${reasonOf(failure)}`, 'let the user of the agent read it')],
		};
	}
}

function kindOf(path: string, reader: FileReader): ReturnType<FileReader['kind']> {
	try {
		return reader.kind(path);
	} catch {
		// Below a directory that may not be searched: something else than what is needed, as far as we can tell.
		return 'other';
	}
}
