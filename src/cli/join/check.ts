import {existsSync} from 'node:fs';
import {join} from 'node:path';
import {checkBundleFiles, checkConfig, diskReader, type LoadedConfig, type Problem} from '../../config/index.ts';
import {AgentError} from '../../errors.ts';
import {askVersion} from '../../proxy/ask-version.ts';
import {checkBinary, checkVersion} from '../../proxy/binary.ts';
import type {Flags} from '../index.ts';
import {loadFrom} from '../load.ts';
import {examineToken} from './token.ts';

/**
 * Everything that can be seen to be wrong with a bundle and the configuration around it, before anything is touched.
 * @param isKnown - the token is the one that is installed already: that it has expired since then is no reason to refuse
 * @throws AgentError `config.invalid` with every problem
 */
export async function checkBundle(
	source: string,
	flags: Flags,
	isKnown: boolean,
): Promise<{readonly loaded: LoadedConfig; readonly warnings: readonly string[]}> {
	if (diskReader.kind(source) !== 'directory') {
		throw new AgentError('config.invalid', `join: ${source} is not a directory`, {
			hint: 'name the directory that "istioctl x workload entry configure" wrote; nothing was changed',
		});
	}
	const {loaded, failure, problems: ofText} = await tryLoad({...flags, bundle: source});
	const tokenPath = join(source, 'istio-token');
	const ofFiles = (loaded ? checkConfig(loaded, diskReader) : checkBundleFiles(source, diskReader)).filter(
		// Told with more words by what looks at the claims.
		({place}) => place !== tokenPath || !loaded,
	);
	const ofToken = loaded ? checkToken(loaded, tokenPath, isKnown) : [];
	// Only of one that could be started at all; what else is wrong with it is told above.
	const isEnvoyFine = loaded !== undefined && ofFiles.every(({place}) => place !== loaded.config.proxy.binaryPath);
	const further = [...ofFiles, ...ofToken, ...(isEnvoyFine ? await checkEnvoyVersion(loaded) : [])];
	const fatal = further.filter(({severity}) => severity === 'error');
	if (failure && fatal.length === 0) throw failure;
	if (fatal.length > 0) {
		const all = [...ofText, ...fatal];
		const list = all.map(({place, message, remedy}) => `\n  ${place}: ${message}\n    → ${remedy}`).join('');
		throw new AgentError('config.invalid', `join with ${source}: the bundle cannot be used${list}`, {
			hint: 'nothing was changed',
			fields: {problems: all},
		});
	}
	const warnings = further.map(({place, message}) => `${place}: ${message}`);
	return {loaded: loaded!, warnings: [...loaded!.warnings, ...warnings]};
}

async function tryLoad(
	flags: Flags,
): Promise<{loaded?: LoadedConfig; failure?: AgentError; problems: readonly Problem[]}> {
	try {
		return {loaded: await loadFrom(flags, {isStrict: true}), problems: []};
	} catch (error) {
		if (!(error instanceof AgentError) || error.code !== 'config.invalid') throw error;
		return {failure: error, problems: (error.fields['problems'] ?? []) as readonly Problem[]};
	}
}

/** An agent would find out when Envoy has failed to start, with the bundle in place already. */
async function checkEnvoyVersion({config: {proxy}}: LoadedConfig): Promise<Problem[]> {
	if (proxy.mode === 'off' || proxy.mode === 'external') return [];
	const {binaryPath: place} = proxy;
	const remedy = 'install Envoy there, or give the path of another with --envoy';
	try {
		checkBinary(place);
		const version = await askVersion(place);
		if (version !== undefined) checkVersion(place, version);
		return version === undefined
			? [{severity: 'error', place, message: 'says nothing of Envoy when asked for its version', remedy}]
			: [];
	} catch (error) {
		if (!(error instanceof AgentError)) throw error;
		return [{severity: 'error', place, message: error.message, remedy: error.hint ?? remedy}];
	}
}

function checkToken({config}: LoadedConfig, path: string, isKnown: boolean): Problem[] {
	if (config.identity.source.kind !== 'control-plane' || config.controlPlane.tokenProgram.length > 0) return [];
	const bytes = diskReader.read(path, 65_536);
	const missing: Problem = {
		severity: 'error',
		place: path,
		message: 'the token is missing',
		remedy: 'copy the whole bundle again',
	};
	const {problems} = bytes
		? examineToken(Buffer.from(bytes).toString('latin1'), path, config, new Date())
		: {problems: [missing]};
	// Whoever has a certificate may never need the token again.
	const isNeeded = !isKnown && !existsSync(join(config.identity.stateDir, 'current'));
	return problems.map(problem => (isNeeded ? problem : {...problem, severity: 'warning'}));
}
